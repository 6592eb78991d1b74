"""Are ours and the original implementations equal? One line for each case of the given golden folders.

    python benchmarks/parity/parity.py FOLDER... [--tolerance 1e-4]

A folder holds manifests (`manifest*.json`: the settings of a network and the names and shapes of its weights, which are
a formula of their names), and what the original made of them (`*.npz`, `*.json`). Which family it is, its settings and
its cases are read from the folder. Exit code 1 if any stage is beyond the tolerance, or tokens or assignments differ.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path

from golden import Result

REPLICATIONS = ("transformer.vocal_embed.", "bbox_head.vocal_embed.", "transformer.embedding.word_embeddings.")
OTHERS = ("encoder.model.", "decoder.decoder.layers.")  # moein-shariatnia/Pix2Seq: its weights are not worth importing


def family(folder: Path) -> str | None:
    """The module that checks such a folder, by what its manifests hold; an empty word for one that we do not have."""
    for file in sorted(folder.glob("manifest*.json")):
        manifest = json.loads(file.read_text())
        names = [entry["key"] for entry in manifest.get("keys", ())]
        if "model_config" in manifest and "variables" in manifest:
            return "official"
        if any(name.startswith(REPLICATIONS) for name in names):
            return "replications"
        if any(name in names for name in ("model.level_embed", "transformer.level_embed")):
            return "deformable"
        if any(name in names for name in ("class_labels_classifier.weight", "transformer.decoder.norm.weight")):
            return "detr"
        if all(any(name.startswith(other) for name in names) for other in OTHERS):
            return ""
    return None


def with_manifests(folder: Path) -> list[Path]:
    """The folder, or those in it that have manifests where it has none itself."""
    if any(folder.glob("manifest*.json")):
        return [folder]
    return sorted({file.parent for file in folder.glob("*/manifest*.json")}) or [folder]


def line(result: Result, tolerance: float) -> str:
    """One case as one line."""
    wrong = result.failures(tolerance)
    limits = {stage: result.limit(stage, tolerance) for stage in result.differences}
    wide = {stage: f" (limit {limit:.0e})" if limit > tolerance else "" for stage, limit in limits.items()}
    stages = [
        f"{stage} {worst:.1e}{wide[stage]}{' (!)' * (stage in wrong)}" for stage, worst in result.differences.items()
    ]
    equal = [f"{what} {'identical' if same else 'DIFFERENT'}" for what, same in result.identical.items()]
    return f"{'FAIL' if wrong else 'ok  '} {result.case}: {', '.join(stages + equal)}"


def main() -> int:
    """Check all folders; the number of cases that are not equal decides the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest difference allowed (default 1e-4)")
    arguments = parser.parse_args()
    failed = checked = 0
    for folder in (inner for given in arguments.folders for inner in with_manifests(given)):
        module = family(folder) if folder.is_dir() else None
        if module is None:
            print(f"FAIL {folder}: no golden folder of a known family (no manifest*.json with settings that we know).")
            failed += 1
            continue
        if not module:
            print(f"---  {folder}: moein-shariatnia/Pix2Seq is not supported, so nothing of it is compared.")
            continue
        for result in importlib.import_module(module).check(folder):
            print(line(result, arguments.tolerance), flush=True)
            for note in result.notes:
                print(f"     not compared: {note}")
            failed += bool(result.failures(arguments.tolerance))
            checked += 1
    print(f"{checked} cases, {failed} not equal")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())

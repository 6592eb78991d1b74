"""Are ours and the original implementations equal? One line for each case of the given golden folders.

    python benchmarks/parity/parity.py FOLDER... [--tolerance 1e-4]

A folder holds manifests (`manifest*.json`: the settings of a network and the names and shapes of its weights, which are
a formula of their names), and the original's outputs (`*.npz`, `*.json`). Which family it is, its settings and its
cases are read from the folder. Exit code 1 if any stage is beyond its limit, or tokens or assignments differ.

The limit, printed behind each difference, is the larger of the tolerance and ten times the original's own float32
noise, where the folder stores that (`fp32_noise`). Smaller ones are for what involves hardly any arithmetic; larger
ones are for images in bytes (1.5 grey levels) and for histograms of random draws. `undecided` is a stage of training
beyond its limit for which no noise is stored, while ours in float32 is at least a tenth as far from ours in float64.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path

from golden import Result

REPLICATIONS = ("transformer.vocal_embed.", "bbox_head.vocal_embed.", "transformer.embedding.word_embeddings.")
UNSUPPORTED = ("encoder.model.", "decoder.decoder.layers.")  # moein-shariatnia/Pix2Seq, which we do not import


def family(folder: Path) -> str | None:
    """The module that checks a folder, by its manifests: empty for an unsupported network, None for an unknown one."""
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
        if all(any(name.startswith(prefix) for name in names) for prefix in UNSUPPORTED):
            return ""
    return None


def with_manifests(folder: Path) -> list[Path]:
    """The folder, or its subfolders with manifests where it has none itself."""
    if any(folder.glob("manifest*.json")):
        return [folder]
    return sorted({file.parent for file in folder.glob("*/manifest*.json")}) or [folder]


def line(result: Result, tolerance: float) -> str:
    """One case as one line."""
    stages = [stage_text(result, stage, tolerance) for stage in result.differences]
    equal = [f"{what} {'identical' if same else 'DIFFERENT'}" for what, same in result.identical.items()]
    verdict = "FAIL" if result.failures(tolerance) else "open" if result.undecided(tolerance) else "ok  "
    return f"{verdict} {result.case}: {', '.join(stages + equal)}"


def stage_text(result: Result, stage: str, tolerance: float) -> str:
    """Difference and limit of a stage."""
    worst, limit = result.differences[stage], result.limit(stage, tolerance)
    text = f"{stage} {worst:.1e} (limit {limit:.0e}"
    if worst <= limit:
        return f"{text})"
    if stage in result.undecided(tolerance):
        return f"{text}, undecided: {result.rounding[stage]:.1e} of ours is rounding)"
    return f"{text}, EXCEEDED)"


def main() -> int:
    """Check all folders; the number of cases that are not equal decides the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest difference allowed (default 1e-4)")
    arguments = parser.parse_args()
    failed = checked = undecided = 0
    for folder in (inner for outer in arguments.folders for inner in with_manifests(outer)):
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
            undecided += bool(result.undecided(arguments.tolerance))
            checked += 1
    print(f"{checked} cases, {failed} not equal" + f", {undecided} with undecided stages" * bool(undecided))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())

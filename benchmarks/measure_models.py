"""Measure what `boxwright models` shows: parameters, time on one CPU core, and AP of training runs.

    python benchmarks/measure_models.py [--timed nano small medium base] [--runs RUN ...]

Writes src/boxwright/bundled/measured.json; what is not measured this time stays as it was. A RUN is the folder or the
checkpoint of a training run, for example each detector's folder of a comparison: its card has AP, data and settings.
Times are CPU times on one thread, so that a busy machine changes little; the network is untrained, and sequences have
their full length.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from boxwright.bundled.catalogue import MEASURED
from boxwright.checkpoints.detector_file import load_detector
from boxwright.evaluation.run import best_of
from boxwright.models import registry
from boxwright.types import Detector


@torch.inference_mode()
def cpu_ms(detector: Detector, repeats: int = 3) -> float:
    """Median CPU milliseconds of an image of noise, after one to warm up."""
    side = detector.image_size
    image = torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8)
    taken = []
    for _ in range(repeats + 1):
        started = time.process_time()
        best_of(detector.decode(detector(image, torch.tensor([[side, side]]))))
        taken.append(1000 * (time.process_time() - started))
    return statistics.median(taken[1:])


def score(run: Path) -> tuple[str, dict[str, Any]]:
    """``model/size`` of a run and the numbers of its card; of the last epoch, where nothing was chosen."""
    last = run / "last.safetensors"
    detector = load_detector(last if last.is_file() else run)
    card: Any = detector.card
    facts = {"ap": card["val_ap"], "ap50": card["val_ap50"], "data": card["trained on"].rpartition(" of ")[2]}
    settings = card["settings"]
    facts |= {"image_size": detector.image_size, "epochs": card["epoch"], "split": settings["val_split"] or "val"}
    return f"{settings['model']}/{settings['size']}", facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timed", nargs="*", default=["nano", "small", "medium", "base"])
    parser.add_argument("--runs", nargs="*", type=Path, default=[])
    a = parser.parse_args()
    torch.set_num_threads(1)
    measured: dict[str, Any] = json.loads(MEASURED.read_text()) if MEASURED.is_file() else {}
    for model, (_, _, sizes) in registry.DETECTORS.items():
        for size in sizes:
            detector = registry.build(model, size, ("a", "b", "c"), pretrained=False).eval()
            entry = measured.setdefault(f"{model}/{size}", {})
            entry["parameters"] = sum(p.numel() for p in detector.parameters())
            if size in a.timed:
                entry["cpu_ms"] = round(cpu_ms(detector), 1)
            print(f"{model}/{size}", entry, flush=True)
    for run in a.runs:
        name, facts = score(run)
        entry = measured.setdefault(name, {})
        same = ("data", "image_size", "epochs")
        others = [old for old in entry.get("scores", []) if any(old[key] != facts[key] for key in same)]
        entry["scores"] = [*others, facts]
        print(name, facts)
    MEASURED.write_text(json.dumps(measured, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()

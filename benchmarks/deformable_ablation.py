"""What each block of `deformable` is worth: each switched off in turn, for the same number of epochs.

    python benchmarks/deformable_ablation.py [DATA] [--val-data DATA] [--epochs 12] [--image-size 256] [--write FILE]

Without DATA it is BCCD's training images, a fifth of them held out to score on, so that the test images choose nothing;
with `--val-split test` or `--val-data` it is those. All rows have the recipe of `deformable` (images, augmentation,
optimizer, schedule, weights averaged), seed 0 by default, and ImageNet weights in the backbone. `--rows` picks some by
their number, `--seeds` repeats each and gives the mean.

Seconds are CPU time of the process a training image, which a busy machine does not change; on a GPU, wall time.
"""

import argparse
import datetime
import statistics
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from peers import train

import boxwright.bundled
from boxwright.data.cache import Cache, build
from boxwright.data.loader import steps_per_epoch
from boxwright.data.read import merge_val, name_splits, read, train_and_val
from boxwright.evaluation.coco import score
from boxwright.evaluation.run import detect
from boxwright.models.deformable import SIZES, Deformable, DeformableConfig
from boxwright.training import recipes
from boxwright.training.fabric import keep_memory
from boxwright.types import Detector

BCCD = Path(boxwright.bundled.__path__[0]) / "bccd"
SWITCHES = ("forward_twice", "noisy", "aware", "many", "fused", "rivals")
LEARNED_SINCE = dict.fromkeys(SWITCHES, False)
ROWS = {
    "whole": {},
    "no rivals": {"rivals": False},
    "no denoising": {"noisy": False},
    "no look forward twice": {"forward_twice": False},
    "no overlap in the class loss (focal loss)": {"aware": False},
    "no one-to-many in the encoder": {"many": False},
    "no fused maps": {"fused": False},
    "contents from cells, not learned": {"begin": "cells"},
    "as published, two-stage": {"begin": "proposals", **LEARNED_SINCE},
    "as published, with refinement": {"begin": "table", **LEARNED_SINCE},
    "as published": {"begin": "table", "refine": False, **LEARNED_SINCE},
}


def learned(
    config: DeformableConfig, names: tuple[str, ...], cache: Cache, plan: dict[str, Any], device: str
) -> Detector:
    """The averaged detector after the last epoch."""
    torch.manual_seed(plan["seed"])
    return train(Deformable(config, names), cache, plan, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", default=BCCD)
    parser.add_argument("--val-data", type=Path)
    parser.add_argument("--val-split")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--rows", type=int, nargs="+", choices=range(len(ROWS)), default=range(len(ROWS)))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--write", type=Path)
    a = parser.parse_args()
    keep_memory()
    dataset = name_splits(read(a.data), None, a.val_split)
    dataset = merge_val(dataset, read(a.val_data)) if a.val_data else dataset
    records, val_records = train_and_val(dataset, 0.2)
    cache, val_cache = build(records, a.image_size), build(val_records, a.image_size)
    recipe = recipes.recipe("deformable")
    plan: dict[str, Any] = {
        "optim": asdict(recipe.optim),
        "augment": asdict(recipe.augment),
        "batch_size": recipe.batch_size,
    }
    plan["epochs"] = a.epochs
    seen = a.epochs * steps_per_epoch(len(cache), recipe.batch_size) * recipe.batch_size
    clock = time.process_time if a.device == "cpu" else time.perf_counter
    title = (
        f"{datetime.date.today()}, {a.data.name}, {len(records)} images to train on, {len(val_records)} to score on, "
        f"{a.image_size} px, {a.epochs} epochs, {a.device}, mean over {len(a.seeds)} seed(s)"
    )
    head = "| `deformable` | AP | AP50 | ms a training image |"
    lines = [f"\n{title}\n", head, "| --- " * 4 + "|"]
    for name in [list(ROWS)[number] for number in a.rows]:
        config, started = replace(SIZES["nano"], image_size=a.image_size, **ROWS[name]), clock()
        detectors = [learned(config, dataset.names, cache, plan | {"seed": seed}, a.device) for seed in a.seeds]
        took = (clock() - started) / len(a.seeds) / seen * 1000
        reports = [score(val_records, detect(found, val_cache, 16, a.device), dataset.names) for found in detectors]
        ap, ap50 = (statistics.mean(getattr(report, key) for report in reports) for key in ("ap", "ap50"))
        lines.append(f"| {name} | {ap:.3f} | {ap50:.3f} | {took:.0f} |")
        print(lines[-1], flush=True)
    if a.write:
        with a.write.open("a") as stream:
            stream.write("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()

"""The effect of each block of `deformable`: each switched off in turn, for the same number of epochs.

    python benchmarks/deformable_ablation.py [DATA] [--val-data DATA] [--epochs 12] [--image-size 256] [--write FILE]

Without DATA it is BCCD's training images, a fifth of them held out to score on, so that the test images choose nothing;
with `--val-split test` or `--val-data` those are scored. All rows have the recipe of `deformable` (images,
augmentation, optimizer, schedule, averaged weights), seed 0 by default, and ImageNet weights in the backbone. `--rows`
picks some by their number, `--seeds` repeats each and gives the mean.

Seconds are CPU time of the process per training image, which a busy machine does not change; on a GPU, wall time.
"""

import datetime
import statistics
from dataclasses import replace
from pathlib import Path

import torch
from ablation import BCCD, Table, clock, options, prepare, recipe_settings, train

from boxwright.data.loader import steps_per_epoch
from boxwright.models.deformable import SIZES, Deformable

SWITCHES = ("forward_twice", "noisy", "aware", "many", "fused", "rivals")
AS_PUBLISHED = dict.fromkeys(SWITCHES, False)
ROWS = {
    "whole": {},
    "no duplicate relation": {"rivals": False},
    "no denoising": {"noisy": False},
    "no look forward twice": {"forward_twice": False},
    "no overlap in the class loss (focal loss)": {"aware": False},
    "no one-to-many in the encoder": {"many": False},
    "no fused maps": {"fused": False},
    "contents from cells, not learned": {"begin": "cells"},
    "as published, two-stage": {"begin": "proposals", **AS_PUBLISHED},
    "as published, with refinement": {"begin": "table", **AS_PUBLISHED},
    "as published": {"begin": "table", "refine": False, **AS_PUBLISHED},
}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("data", type=Path, nargs="?", default=BCCD)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--rows", type=int, nargs="+", choices=range(len(ROWS)), default=range(len(ROWS)))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    a = parser.parse_args()
    data, settings, now = prepare(a, a.image_size, 0.2), recipe_settings("deformable", a.epochs), clock(a.device)
    batch_size = settings["batch_size"]
    images = a.epochs * steps_per_epoch(len(data.train), batch_size) * batch_size
    title = (
        f"{datetime.date.today()}, {a.data.name}, {len(data.train)} images to train on, {len(data.val)} to score on, "
        f"{a.image_size} px, {a.epochs} epochs, {a.device}, mean over {len(a.seeds)} seed(s)"
    )
    table = Table(title, "`deformable`", "AP", "AP50", "ms per training image")
    for name in [list(ROWS)[number] for number in a.rows]:
        config, started, detectors = replace(SIZES["nano"], image_size=a.image_size, **ROWS[name]), now(), []
        for seed in a.seeds:
            torch.manual_seed(seed)
            detectors.append(train(Deformable(config, data.names), data.train, settings | {"seed": seed}, a.device))
        took = (now() - started) / len(a.seeds) / images * 1000
        reports = [data.report(detector, a.device) for detector in detectors]
        ap, ap50 = (statistics.mean(getattr(report, key) for report in reports) for key in ("ap", "ap50"))
        table.add(name, ap, ap50, f"{took:.0f}")
    table.append_to(a.write)


if __name__ == "__main__":
    main()

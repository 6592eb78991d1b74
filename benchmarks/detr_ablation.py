"""The effect of each ingredient of `detr`: each left out in turn, for the same number of epochs.

    python benchmarks/detr_ablation.py [DATA] [--val-data DATA] [--epochs 5] [--image-size 192] [--write FILE]

Without DATA it is BCCD's training images, a fifth of them held out to score on, so that the test images choose nothing;
with `--val-split test` or `--val-data` those are scored. All rows have the recipe of `detr` (images, augmentation,
optimizer, schedule, averaged weights), seed 0 by default, and ImageNet weights in the backbone; the published form has
its own. `--rows` picks some by their number, `--seeds` repeats each and gives the mean.

Seconds are CPU time of the process per training image, which a busy machine does not change; on a GPU, wall time.
"""

import datetime
import statistics
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from ablation import BCCD, Data, Table, clock, options, prepare, recipe_settings, train
from torch import Tensor, nn

from boxwright.models.detr import SIZES, Detr, DetrConfig, ProposingTransformer
from boxwright.models.layers.attention import Attention
from boxwright.models.layers.deformable_transformer import MultiScaleCells, Queries, box_encoding
from boxwright.models.layers.global_transformer import OCTAVES, ConditionalAttention
from boxwright.models.layers.kv_cache import KeysValues
from boxwright.models.layers.proposals import QueryProposals, refine_queries
from boxwright.models.losses.proposals import one_to_one_loss
from boxwright.models.losses.set_criterion import Targets
from boxwright.training.recipes import recipe
from boxwright.types import Detector


class FromTable(ProposingTransformer):
    """Queries with learned boxes; proposals are still taught."""

    def __init__(self, c: DetrConfig, channels: list[int], classes: int):
        super().__init__(c, channels, classes)
        self.box_embedding = nn.Parameter(torch.cat([torch.randn(c.queries, 2), torch.full((c.queries, 2), -2.0)], 1))

    def start_queries(self, proposals: QueryProposals) -> Queries:
        assert self.content_embedding is not None
        images = len(proposals.boxes_BT4)
        boxes_BQ4 = self.box_embedding.sigmoid().expand(images, -1, -1)
        return Queries(self.content_embedding.expand(images, -1, -1), boxes_BQ4, None)


class AddedPositions(ConditionalAttention):
    """Encodings of positions are added to contents, as in the published form, instead of compared apart."""

    def cells(self, source_BTE: Tensor, values_BTE: Tensor, centres_BT2: Tensor) -> KeysValues:
        code_BTE = box_encoding(centres_BT2, source_BTE.shape[-1])
        keys_values = Attention.keys_values(self, source_BTE + code_BTE, values_BTE)
        return KeysValues(keys_values.keys_BHLE, F.pad(keys_values.values_BHLE, (0, 4 * OCTAVES)))

    def queries(self, x_BLE: Tensor) -> Tensor:
        x_BLE, boxes_BL4 = x_BLE[..., :-4], x_BLE[..., -4:]
        return Attention.queries(self, x_BLE + box_encoding(boxes_BL4[..., :2], x_BLE.shape[-1]))


def one_to_one(_: MultiScaleCells, proposals: QueryProposals, targets: Targets) -> dict[str, Tensor]:
    """Instead of `one_to_many_loss`."""
    return one_to_one_loss(proposals, targets, aware=True)


class Row(NamedTuple):
    """What differs from the nano size: fields of the configuration, and names that are replaced."""

    config: dict[str, Any]
    patches: dict[str, Any]


DETR, TRANSFORMER = "boxwright.models.detr", "boxwright.models.layers.global_transformer"
ROWS = {
    "whole": Row({}, {}),
    "contents learned, not from cells": Row({"begin": "both"}, {}),
    "no duplicate relation": Row({"rivals": False}, {}),
    "no denoising": Row({"noisy": False}, {}),
    "boxes learned, not from proposals (nor duplicate relation, nor contents from cells)": Row(
        {"begin": "both", "rivals": False}, {f"{DETR}.ProposingTransformer": FromTable}
    ),
    "content and position added, not apart": Row({}, {f"{TRANSFORMER}.ConditionalAttention": AddedPositions}),
    "proposals one to one": Row({}, {f"{DETR}.one_to_many_loss": one_to_one}),
    "no look forward twice": Row({}, {f"{DETR}.refine_queries": partial(refine_queries, forward_twice=False)}),
    "no self-attention of cells": Row({"encoder_layers": 0}, {}),
    "one map, of stride 16": Row({"strides": (16,)}, {}),
    "as published": Row({}, {}),
}


def make(name: str, names: tuple[str, ...], image_size: int) -> Detr:
    """The untrained detector of a row."""
    base = DetrConfig() if name == "as published" else SIZES["nano"]
    return Detr(replace(base, image_size=image_size, **ROWS[name].config), names)


def train_row(name: str, data: Data, settings: dict[str, Any], image_size: int, device: str) -> Detector:
    """The trained detector of a row."""
    torch.manual_seed(settings["seed"])
    with ExitStack() as stack:
        for target, replacement in ROWS[name].patches.items():
            stack.enter_context(patch(target, replacement))
        detector = make(name, data.names, image_size)
        own = recipe("detr", config=detector.config)
        optimised = {"optim": asdict(own.optim), "batch_size": own.batch_size}
        return train(detector, data.train, settings | optimised, device)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("data", type=Path, nargs="?", default=BCCD)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--image-size", type=int, default=192)
    parser.add_argument("--rows", type=int, nargs="+", choices=range(len(ROWS)), default=range(len(ROWS)))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    a = parser.parse_args()
    data, settings, now = prepare(a, a.image_size, 0.2), recipe_settings("detr", a.epochs), clock(a.device)
    title = (
        f"{datetime.date.today()}, {a.data.name}, {len(data.train)} images to train on, {len(data.val)} to score on, "
        f"{a.image_size} px, {a.epochs} epochs, {a.device}, mean over {len(a.seeds)} seed(s)"
    )
    table = Table(title, "`detr`", "AP", "AP50", "AP of each seed", "ms per training image")
    for name in [list(ROWS)[number] for number in a.rows]:
        started = now()
        detectors = [train_row(name, data, settings | {"seed": seed}, a.image_size, a.device) for seed in a.seeds]
        took = (now() - started) / len(a.seeds) / (a.epochs * len(data.train)) * 1000
        reports = [data.report(detector, a.device) for detector in detectors]
        ap, ap50 = (statistics.mean(getattr(report, key) for report in reports) for key in ("ap", "ap50"))
        table.add(name, ap, ap50, ", ".join(f"{report.ap:.3f}" for report in reports), f"{took:.0f}")
    table.append_to(a.write)


if __name__ == "__main__":
    main()

"""The effect of each part of a sequence detector that copies from proposals: each left out in turn, in equal epochs.

    python benchmarks/proposal_ablation.py [DATA] [--val-data DATA] [--model pix2seq] [--epochs 5] [--image-size 192]

Each row scores three lists of boxes of the same network: the sequence; the proposals, of which it copies, with NMS; and
the cells of the dense head, of which the proposals are made, with NMS. So it shows what the decoder adds to copying.

Without DATA it is BCCD's training images, a fifth of them held out to score on, so that the test images choose nothing;
with `--val-split test` or `--val-data` those are scored. All rows have the recipe of the detector and ImageNet weights
in the backbone. `--rows` picks some by their number, `--seeds` repeats each and gives the mean.

Seconds are CPU time of the process per training image, which a busy machine does not change; on a GPU, wall time.
"""

import datetime
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ablation import BCCD, Data, Table, clock, options, prepare, recipe_settings, train
from torch import Tensor, nn
from torchvision.ops import batched_nms

from boxwright.data.loader import steps_per_epoch
from boxwright.evaluation.coco import score
from boxwright.evaluation.run import detect
from boxwright.models import registry
from boxwright.types import Predictions

OVERLAP = 0.6  # IoU of NMS
KEPT = 100  # boxes of an image, as COCO counts


class Zeros(nn.Module):
    """In place of features of regions."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width

    def forward(self, x_BCX: Tensor) -> Tensor:
        """(B, C, width)."""
        return x_BCX.new_zeros(*x_BCX.shape[:2], self.width)


def hold(value: float | None, *tensors: nn.Parameter) -> None:
    """Keep parameters as they are, or at this value, in training."""
    for tensor in tensors:
        if value is not None:
            nn.init.constant_(tensor, value)
        tensor.requires_grad_(False)


def without_regions(detector: Any) -> None:
    detector.proposer.region = Zeros(detector.proposer.enter.out_features)


ROWS: dict[str, Callable[[Any], None]] = {
    "whole": lambda detector: None,
    "no transformer layers: a state knows the last object only": lambda d: hold(0.0, *layer_outputs(d)),
    "no second look: features of the cell alone": without_regions,
    "boxes as the head predicts them": lambda d: hold(0.0, d.proposer.refine.weight, d.proposer.refine.bias),
    "no box of the decoder's own": lambda d: hold(None, *own_box(d)),
    "proposals come by score and overlap alone": lambda d: hold(0.0, *d.decoder.point_query.parameters()),
    "class scores lowered by overlap alone": lambda d: hold(0.0, *d.decoder.rescore.parameters()),
    "nothing known of overlap": lambda d: hold(0.0, d.decoder.apart, d.decoder.lowered, d.decoder.from_overlap),
}


def layer_outputs(detector: Any) -> list[nn.Parameter]:
    """The last maps of attention and MLP of each layer: where they are zero, a layer adds nothing."""
    layers = detector.decoder.layers
    maps = [m for x in layers for m in (x.self_attention.output, x.cross_attention.output, x.mlp.narrow)]
    return [parameter for one in maps for parameter in one.parameters()]


def own_box(detector: Any) -> list[nn.Parameter]:
    """The gate, closed."""
    nn.init.constant_(detector.decoder.gate.bias, -30.0)
    return list(detector.decoder.gate.parameters())


def build(name: str, model: str, names: tuple[str, ...], image_size: int) -> Any:
    """The detector of a row."""
    network, _, sizes = registry.DETECTORS[model]
    detector = network(replace(sizes["nano"], image_size=image_size), names, True)
    ROWS[name](detector)
    return detector


class Suppressed(nn.Module):
    """A detector's proposals, or all its cells, with NMS in place of its sequence."""

    def __init__(self, detector: Any, cells: bool):
        super().__init__()
        self.detector, self.cells, self.image_size, self.names = detector, cells, detector.image_size, detector.names

    def forward(self, images_BCHW: Tensor, sizes_B2: Tensor) -> Any:
        """The detector's outputs."""
        return self.detector(images_BCHW, sizes_B2)

    @torch.no_grad()
    def decode(self, outputs: Any) -> Predictions:
        """What NMS leaves, class by class."""
        boxes, logits = outputs.proposals.boxes_BC4, outputs.proposals.logits_BCK
        if self.cells:
            boxes, logits = outputs.cells.boxes_BQ4, outputs.cells.many_BQK
        images = [self._one(*one) for one in zip(boxes.clamp(0, 1), logits.sigmoid(), strict=True)]
        return Predictions(*(torch.stack(part) for part in zip(*images, strict=True)))

    def _one(self, boxes_Q4: Tensor, scores_QK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        classes = scores_QK.shape[1]
        scores_R, index_R = scores_QK.flatten().topk(min(10 * KEPT, scores_QK.numel()))
        boxes_R4, labels_R = boxes_Q4[index_R // classes], index_R % classes
        kept = batched_nms(boxes_R4, scores_R, labels_R, OVERLAP)[:KEPT]
        rest = KEPT - len(kept)
        pad = nn.functional.pad
        return pad(boxes_R4[kept], (0, 0, 0, rest)), pad(scores_R[kept], (0, rest)), pad(labels_R[kept], (0, rest))


def scored(detector: Any, data: Data, device: str) -> list[float]:
    """AP and AP50 of the sequence, of the proposals and of the cells."""
    numbers = []
    for found in (detector, Suppressed(detector, False), Suppressed(detector, True)):
        report = score(data.val_records, detect(found, data.val, 16, device), data.names)
        numbers += [report.ap, report.ap50]
    return numbers


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("data", type=Path, nargs="?", default=BCCD)
    parser.add_argument("--model", choices=("pix2seq", "patchseq"), default="pix2seq")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--image-size", type=int, default=192)
    parser.add_argument("--rows", type=int, nargs="+", choices=range(len(ROWS)), default=range(len(ROWS)))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    a = parser.parse_args()
    data, settings, now = prepare(a, a.image_size, 0.2), recipe_settings(a.model, a.epochs), clock(a.device)
    batch_size = settings["batch_size"]
    images = a.epochs * steps_per_epoch(len(data.train), batch_size) * batch_size
    title = (
        f"{datetime.date.today()}, {a.model}, {a.data.name}, {len(data.train)} images to train on, {len(data.val)} to "
        f"score on, {a.image_size} px, {a.epochs} epochs, {a.device}, mean over {len(a.seeds)} seed(s)"
    )
    lists = ("sequence", "proposals", "cells")
    table = Table(title, "", *(f"{what} {key}" for what in lists for key in ("AP", "AP50")), "ms per training image")
    for name in [list(ROWS)[number] for number in a.rows]:
        started, detectors = now(), []
        for seed in a.seeds:
            torch.manual_seed(seed)
            detector = build(name, a.model, data.names, a.image_size)
            detectors.append(train(detector, data.train, settings | {"seed": seed}, a.device))
        took = (now() - started) / len(a.seeds) / images * 1000
        rows = [scored(detector, data, a.device) for detector in detectors]
        table.add(name, *(statistics.mean(values) for values in zip(*rows, strict=True)), f"{took:.0f}")
    table.append_to(a.write)


if __name__ == "__main__":
    main()

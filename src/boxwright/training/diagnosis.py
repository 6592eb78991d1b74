"""Why a run has learned next to nothing, and what to try: from its settings, its losses and its data."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from boxwright.classes import enumerate_classes
from boxwright.data.records import Record
from boxwright.data.shards.records import count_labels
from boxwright.models import registry
from boxwright.training.config import RunConfig
from boxwright.training.recipes import MOST_EPOCHS, Recipe, recipe
from boxwright.types import Detector

NOTHING = 0.01  # with an AP under this, a detector has learned next to nothing
ENOUGH = 500  # optimizer steps; with fewer, more of them are the first thing to try
HIGH, LOW = 3.0, 0.1  # learning rates beyond these multiples of the recipe's are suspected
JUDGED = 50  # steps, from which a loss that rose is more than the difference of two batches
FLAT = 0.95  # a loss that ends over this fraction of its beginning hardly fell
SMALL, GOOD = 8.0, 16.0  # canvas pixels: objects under the first are hard to see, those of the second are not
FROM_FEW_IMAGES = ("nano", "small", "medium", "base")  # sizes that are not published ones, where nothing else says so


def report(ap: float, hints: Sequence[str]) -> str:
    """The message for the end of a run: what its AP means, and what to try.

    Args:
        ap: best AP of the run, under `NOTHING`.
        hints: of `diagnose`.
    """
    lines = [f"AP is {ap:.3f}: the detector has learned next to nothing. Try, in this order:"]
    return "\n".join([*lines, *(f"  {number}. {hint}" for number, hint in enumerate(hints, 1))])


def diagnose(
    config: RunConfig,
    detector: Detector,
    records: Sequence[Record],
    val_records: Sequence[Record],
    compared: bool = False,
) -> list[str]:
    """What to try for a run that has learned next to nothing, the likeliest first; each with the option to give.

    Args:
        config: the settings of the run, as `resolve` returns them; its folder holds metrics.csv.
        detector: the one that was trained.
        records: the training images.
        val_records: the validation images.
        compared: whether other detectors were trained on the same images, so that none is proposed.
    """
    model = registry.name_of(detector)
    usual = recipe(model, config=detector.config)
    losses = _Losses.read(config.out / "metrics.csv")
    hints = [
        *_labels(config, detector.names, records, val_records),
        *_beginning(config, model, detector),
        *_duration(config, losses, usual.epochs_for(len(records))),
        *_rate(config, losses, usual),
        *_canvas(detector, records),
        f"look at what the network sees: boxwright train --config {config.out / 'config.yaml'} --show-batches",
    ]
    if model != "dense" and config.weights is None and not compared:
        hints.append("the detector that learns from the fewest images and steps: --model dense")
    return hints


@dataclass(frozen=True)
class _Losses:
    """How long a run was, and how its training loss went: its mean over the first and the last tenth of the steps."""

    steps: int
    epochs: float
    first: float
    last: float

    @staticmethod
    def read(table: Path) -> _Losses:
        with table.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        losses = [float(row["loss"]) for row in rows]
        tenth = max(len(losses) // 10, 1)
        first, last = float(np.mean(losses[:tenth])), float(np.mean(losses[-tenth:]))
        return _Losses(int(rows[-1]["step"]), float(rows[-1]["epoch"]), first, last)


def _labels(
    config: RunConfig, names: Sequence[str], records: Sequence[Record], val_records: Sequence[Record]
) -> list[str]:
    """Labels that do not fit the images or each other."""
    objects_K, val_objects_K = (count_labels(part, len(names)) for part in (records, val_records))
    hints = []
    unknown = [name for name, n, val in zip(names, objects_K, val_objects_K, strict=True) if val and not n]
    if unknown:
        asked = f"{enumerate_classes(unknown)}, which validation asks for"
        hints.append(f"no training image has an object of {asked}: give other splits")
    outside = sum(_outside(record) for record in records)
    if outside:
        boxes = f"{outside} of {sum(len(record.boxes_N4) for record in records)} boxes"
        hints.append(f"{boxes} lie outside their image: boxwright check {config.data} finds them")
    return hints


def _beginning(config: RunConfig, model: str, detector: Detector) -> list[str]:
    """Weights that are no start for a few images, or too few of them that learn."""
    hints = (
        [] if config.adapt == "full" else [f"only a part of the weights learns (--adapt {config.adapt}): --adapt full"]
    )
    if config.weights is not None:
        return hints
    if not config.pretrained:
        hints.append("the backbone began at random: leave --pretrained false out")
    if getattr(detector.config, "published", config.size not in FROM_FEW_IMAGES):
        published = f"{model} {config.size} is the published network, which takes hundreds of epochs of COCO"
        hints.append(f"{published}: begin with its weights (boxwright import-weights, --weights), or --size nano")
    return hints


def _duration(config: RunConfig, losses: _Losses, usual: int) -> list[str]:
    """Too few steps, or under half of the usual epochs; of very few images, a smaller batch has more of them."""
    if losses.steps >= ENOUGH and losses.epochs >= usual / 2:
        return []
    assert config.batch_size is not None
    needed = max(usual, min(math.ceil(ENOUGH * losses.epochs / losses.steps), MOST_EPOCHS))
    smaller = f"--batch-size {config.batch_size // 2}, or more images" if config.batch_size > 1 else "take more images"
    more = f"--epochs {needed}" if losses.epochs < needed else smaller
    few = "1 step is" if losses.steps == 1 else f"{losses.steps} steps are"
    return [f"{few} few ({losses.epochs:.0f} of the usual {usual} epochs): {more}"]


def _rate(config: RunConfig, losses: _Losses, usual: Recipe) -> list[str]:
    """A learning rate far from the recipe's, or a loss that rose or hardly fell with it."""
    rate, known = config.optim.lr, usual.optim.lr
    assert rate is not None
    assert known is not None
    if not LOW * known <= rate <= HIGH * known:
        return [f"--optim.lr {rate:g} is {rate / known:.2g} times the recipe's: --optim.lr {known:g}"]
    went = f"from {losses.first:.3g} to {losses.last:.3g}"
    if losses.last > losses.first and losses.steps >= JUDGED:
        return [f"the training loss rose ({went}): --optim.lr {rate / 3:.2g}"]
    if losses.last > FLAT * losses.first and losses.steps >= ENOUGH:
        return [f"the training loss hardly fell ({went}): --optim.lr {rate * 3:.2g}"]
    return []


def _canvas(detector: Detector, records: Sequence[Record]) -> list[str]:
    """Objects of too few pixels on the canvas."""
    side, step = detector.image_size, math.lcm(32, detector.backbone.patch)
    sides = [_sides(record) * side / max(record.width, record.height) for record in records]
    sides_N = np.concatenate([*sides, np.zeros(0)])
    if not len(sides_N) or np.median(sides_N) >= SMALL:
        return []
    median, long_side = float(np.median(sides_N)), max(max(record.width, record.height) for record in records)
    wanted = min(math.ceil(side * GOOD / max(median, 0.1) / step) * step, 4 * side // step * step)
    images = f"images of up to {long_side} px shrink to {side} px, and " if long_side > side else ""
    return [
        f"{images}half of the objects are under {median:.1f} px there: --image-size {wanted}, or cut images into tiles"
    ]


def _outside(record: Record) -> int:
    """How many boxes have nothing in common with their image."""
    corners_N2, opposite_N2 = record.boxes_N4[:, :2], record.boxes_N4[:, 2:]
    return int(((opposite_N2 <= 0) | (corners_N2 >= (record.width, record.height))).any(1).sum())


def _sides(record: Record) -> np.ndarray:
    """Square root of each object's area, in pixels of the image, ignored ones left out."""
    boxes_N4 = record.boxes_N4[~record.ignore_N]
    return np.sqrt((boxes_N4[:, 2:] - boxes_N4[:, :2]).clip(min=0).prod(1))

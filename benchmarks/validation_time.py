"""The time of validation without the network's own: boxes to original pixels, matching, accumulating.

    python benchmarks/validation_time.py
    python benchmarks/validation_time.py --data DATA --split val

Without a data set, objects and detections are random; with one, its images also come through the cache (built before
the clock starts), and a detector that ignores them predicts 100 random boxes per image.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jsonargparse import auto_cli
from torch import Tensor

from boxwright.data.cache import build
from boxwright.data.read import read
from boxwright.data.records import Record
from boxwright.evaluation.coco import score
from boxwright.evaluation.evaluate import choose_split
from boxwright.evaluation.run import MAX_DETECTIONS, detect, detect_batch
from boxwright.types import Batch, Detections, Detector, Predictions

T = TypeVar("T")


class RandomDetector(Detector):
    """Predicts the maximal number of boxes, at random, at almost no cost."""

    def __init__(self, names: tuple[str, ...], image_size: int = 256):
        super().__init__()
        self.names, self.image_size = names, image_size
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, images_BCHW: Tensor, sizes_B2: Tensor, targets: Batch | None = None) -> int:
        """The number of images."""
        return len(images_BCHW)

    def decode(self, outputs: int) -> Predictions:
        """Random boxes."""
        corners_BD4 = torch.rand(outputs, MAX_DETECTIONS, 4, generator=self.generator)
        corners_BD4[..., 2:] = corners_BD4[..., :2] + corners_BD4[..., 2:] * 0.4
        scores_BD = torch.rand(outputs, MAX_DETECTIONS, generator=self.generator).sort(descending=True).values
        return Predictions(
            corners_BD4, scores_BD, torch.randint(len(self.names), (outputs, MAX_DETECTIONS), generator=self.generator)
        )


def main(
    images: int = 1000, objects: int = 8, classes: int = 80, data: Path | None = None, split: str | None = None
) -> None:
    """Time validation without a network.

    Args:
        images: at most.
        objects: per random image.
        classes: of the random objects.
        data: a data set with images and objects, instead of random ones.
        split: of the data set.
    """
    if data is None:
        names = tuple(f"class {k}" for k in range(classes))
        records, detector = _random_records(images, objects, classes), RandomDetector(names)
        detections, seconds = _timed(lambda: _detect_at_random(detector, records))
        where = "random objects"
    else:
        dataset = read(data)
        split, _ = choose_split(dataset, split)
        names, records = dataset.names, dataset.splits[split][:images]
        cache, detector = build(records, 256), RandomDetector(names)
        detections, seconds = _timed(lambda: detect(detector, cache))
        where = f"{data.name}, {split}, images of 256 px read from the cache"
    report, scoring = _timed(lambda: score(records, detections, names))
    thresholds, choosing = _timed(lambda: report.thresholds.choose(""))
    boxes = sum(len(record.boxes_N4) for record in records)
    print(f"{len(records)} images, {boxes} objects of {len(names)} classes, {MAX_DETECTIONS} detections each ({where})")
    print(f"  batches and boxes in original pixels  {seconds:6.2f} s")
    print(f"  COCO's twelve numbers                 {scoring:6.2f} s   (AP {report.ap:.4f}, by chance)")
    chosen = "none" if thresholds is None else f"{thresholds.overall:.3f}"
    print(f"  matches and thresholds of best F1     {choosing:6.2f} s   (overall {chosen})")
    print(f"  together                              {seconds + scoring + choosing:6.2f} s")


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def _random_records(images: int, objects: int, classes: int) -> list[Record]:
    random = np.random.default_rng(0)
    return [
        Record(Path("x.jpg"), 640, 480, _random_boxes(random, objects), random.integers(0, classes, objects),
               np.zeros(objects, bool), i, "random")
        for i in range(images)
    ]  # fmt: skip


def _random_boxes(random: np.random.Generator, n: int) -> np.ndarray:
    corner = random.uniform(0, 400, (n, 2))
    return np.concatenate([corner, corner + random.uniform(5, 150, (n, 2))], 1)


def _detect_at_random(detector: Detector, records: list[Record], batch_size: int = 16) -> list[Detections]:
    """Like `detect`, without loading images."""
    detections: list[Detections] = []
    for first in range(0, len(records), batch_size):
        part = records[first : first + batch_size]
        sizes_B2 = torch.tensor([[192, 256]] * len(part))
        originals_B2 = torch.tensor([[record.height, record.width] for record in part])
        empty: dict[str, Any] = dict.fromkeys(("boxes_BN4", "labels_BN", "valid_BN", "index_B"), torch.empty(0))
        images_BCHW = torch.empty(len(part), 3, 256, 256, dtype=torch.uint8)
        detections += detect_batch(detector, Batch(images_BCHW, sizes_B2, originals_B2, **empty))
    return detections


if __name__ == "__main__":
    auto_cli(main)

"""Records and detections made up on the spot."""

from pathlib import Path

import numpy as np

from boxwright.data.records import Record
from boxwright.types import Detections

NAMES = ("cat", "dog", "gnu", "yak")


def record(boxes: list, labels: list, ignore: list | None = None, size: tuple[int, int] = (400, 300)) -> Record:
    return Record(
        path=Path("x.jpg"),
        width=size[0],
        height=size[1],
        boxes_N4=np.array(boxes, float).reshape(-1, 4),
        labels_N=np.array(labels, np.int64),
        ignore_N=np.array(ignore or [False] * len(labels), bool),
        image_id=7,
        source="x",
    )


def found(boxes: list, scores: list, labels: list, names: tuple[str, ...] = NAMES) -> Detections:
    boxes_N4 = np.array(boxes, np.float32).reshape(-1, 4)
    return Detections(boxes_N4, np.array(scores, np.float32), np.array(labels, np.int64), names)


def random_case(seed: int) -> tuple[list[Record], list[Detections]]:
    """Images with and without objects, crowds, misplaced, doubled and far too many detections, equal scores."""
    draw = np.random.default_rng(seed)
    n_classes = int(draw.integers(1, 4))  # the last class never occurs
    records, detections = [], []
    for _ in range(int(draw.integers(1, 12))):
        n, extra = int(draw.integers(0, 8)), int(draw.integers(0, 130 if seed % 5 == 0 else 10))
        truth, noise = random_boxes(draw, n), random_boxes(draw, extra)
        labels = draw.integers(0, n_classes, n)
        near = truth + draw.normal(0, 4, truth.shape)
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        said = np.concatenate([labels, draw.integers(0, len(NAMES), extra)])
        scores = draw.random(n + extra).round(2 if seed % 2 else 6)
        keep = draw.random(n + extra) < 0.9
        records.append(record(truth.tolist(), labels.tolist(), (draw.random(n) < 0.2).tolist()))
        boxes = np.concatenate([near, noise])
        detections.append(found(boxes[keep].tolist(), scores[keep].tolist(), said[keep].tolist()))
    return records, detections


def random_boxes(draw: np.random.Generator, n: int) -> np.ndarray:
    size = np.exp(draw.uniform(np.log(4), np.log(250), (n, 2)))
    corner = draw.uniform(0, 150, (n, 2))
    return np.concatenate([corner, corner + size], 1)

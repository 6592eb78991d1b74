"""COCO's numbers: average precision and recall.

The matching and the averages are faster-coco-eval's; tests/evaluation/test_coco.py shows them equal to pycocotools'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from rich.table import Table

from boxwright.data.records import Record
from boxwright.evaluation.calibration import Calibration, calibrate
from boxwright.evaluation.matches import Matches, match
from boxwright.evaluation.thresholds import ThresholdReport
from boxwright.types import Detections

# (what, IoU, area, most detections per image), in pycocotools' order.
_LINES = (
    ("AP", None, "all", 100),
    ("AP", 0.5, "all", 100),
    ("AP", 0.75, "all", 100),
    ("AP", None, "small", 100),
    ("AP", None, "medium", 100),
    ("AP", None, "large", 100),
    ("AR", None, "all", 1),
    ("AR", None, "all", 10),
    ("AR", None, "all", 100),
    ("AR", None, "small", 100),
    ("AR", None, "medium", 100),
    ("AR", None, "large", 100),
)
STAT_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
RECALLS_R = np.linspace(0, 1, 101)


@dataclass(frozen=True, eq=False)
class Report:
    """The score of one detector on one set of images.

    T runs over the ten IoU thresholds 0.50, 0.55 ... 0.95, R over the recalls of `RECALLS_R`, K over the classes.

    Attributes:
        names: the classes of the data.
        stats: the twelve numbers in pycocotools' order (`STAT_NAMES`), in [0, 1]; -1 where there was nothing to find.
        precision_TRK: interpolated precision, all areas, 100 detections; -1 for a class without objects.
        images_K: images that hold an object of each class. Ignored objects are not counted, here and below.
        boxes_K: objects of each class.
        images: images in all, those without objects included.
        match: matches the detections, for `matches`.
    """

    names: tuple[str, ...]
    stats: tuple[float, ...]
    precision_TRK: np.ndarray
    images_K: np.ndarray
    boxes_K: np.ndarray
    images: int
    match: Callable[[], Matches]

    @property
    def ap(self) -> float:
        """Average precision over IoU 0.50 to 0.95 and all classes that occur; -1 without objects."""
        return self.stats[0]

    @property
    def ap50(self) -> float:
        """Average precision at IoU 0.50."""
        return self.stats[1]

    @cached_property
    def matches(self) -> Matches:
        """Which detections are right."""
        return self.match()

    @cached_property
    def calibration(self) -> Calibration:
        """The scores of the detections beside their precision."""
        return calibrate(self.matches.scores_D, self.matches.right_D)

    @cached_property
    def thresholds(self) -> ThresholdReport:
        """Precision, recall and F1 over the score."""
        return ThresholdReport(self.names, self.matches)

    @property
    def ece(self) -> float:
        """Expected calibration error of the scores, in [0, 1], best 0; -1 without detections that count."""
        return self.calibration.ece

    @cached_property
    def per_class(self) -> dict[str, dict[str, float | int]]:
        """``ap``, ``ap50`` (-1 for a class without objects), ``images`` and ``boxes`` of every class."""
        return {
            name: {
                "ap": float(self.precision_TRK[:, :, k].mean()),
                "ap50": float(self.precision_TRK[0, :, k].mean()),
                "images": int(self.images_K[k]),
                "boxes": int(self.boxes_K[k]),
            }
            for k, name in enumerate(self.names)
        }

    def boxes_of(self, classes: Sequence[str]) -> list[int]:
        """How many objects there are of each of these classes; 0 of those that the data does not have."""
        counts = dict(zip(self.names, self.boxes_K.tolist(), strict=True))
        return [counts.get(name, 0) for name in classes]

    def summary(self) -> str:
        """The twelve lines exactly as ``pycocotools.COCOeval.summarize`` prints them, without a last newline."""
        return "\n".join(_line(*line, value) for line, value in zip(_LINES, self.stats, strict=True))

    def table(self) -> Table:
        """One row per class, for rich; ``-`` where the class does not occur."""
        table = Table("class", box=None, header_style="bold", pad_edge=False)
        for column in ("AP", "AP50", "images", "boxes"):
            table.add_column(column, justify="right")
        for name, row in self.per_class.items():
            table.add_row(name, shown(row["ap"]), shown(row["ap50"]), str(row["images"]), str(row["boxes"]))
        table.add_section()
        table.add_row("all", shown(self.ap), shown(self.ap50), str(self.images), str(int(self.boxes_K.sum())))
        return table

    def to_dict(self) -> dict[str, Any]:
        """Everything but the curves, for JSON."""
        return {
            "stats": dict(zip(STAT_NAMES, self.stats, strict=True)),
            "calibration": self.calibration.to_dict(),
            "per_class": self.per_class,
            "images": self.images,
            "boxes": int(self.boxes_K.sum()),
        }


def score(records: Sequence[Record], detections: Sequence[Detections], names: Sequence[str]) -> Report:
    """Score the detections of each image against its record, in pixels of the original image.

    - Classes are matched by name: a detection whose class is not in `names` is left out, and a class that the detector
      does not know scores 0 where it occurs.
    - An ignored object (`Record.ignore_N`) is a COCO crowd: it need not be detected, and a detection of its class that
      lies on it (half of the detection's area or more, at IoU 0.5) is neither right nor wrong.
    - The area that sorts objects into small, medium and large is that of the box. Boxes without area are left out.
    - Of each class, the 100 best detections of an image count.

    Args:
        records: the images; `labels_N` are positions in `names`.
        detections: one for each record, in the same order.
        names: the classes of the data.
    """
    assert len(records) == len(detections)
    truth, results = _ground_truth(records, names), _results(detections, names)
    evaluator = _evaluator(truth, results)
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    images_K, boxes_K = _count(truth["annotations"], len(names))
    # Area ranges are (all, small, medium, large), limits of detections (1, 10, 100).
    precision_TRK = np.asarray(evaluator.eval["precision"])[..., 0, 2]
    stats = tuple(float(value) for value in evaluator.stats)
    found = [renamed(one, names) for one in detections]
    return Report(
        tuple(names), stats, precision_TRK, images_K, boxes_K, len(records), partial(match, records, found, boxes_K)
    )


def shown(value: float) -> str:
    """A number for a table: three digits, or ``-`` where it is undefined (-1)."""
    return "-" if value < 0 else f"{value:.3f}"


def _evaluator(truth: dict[str, list[dict[str, Any]]], results: list[dict[str, Any]]) -> COCOeval_faster:
    quiet = {"print_function": _silent}
    detected = COCO(truth | {"annotations": results}, **quiet)
    return COCOeval_faster(COCO(truth, **quiet), detected, iouType="bbox", **quiet)


def _silent(*_: Any) -> None:
    """Swallow what the library would print."""


def _line(what: str, iou: float | None, area: str, limit: int, value: float) -> str:
    title = "Average Precision" if what == "AP" else "Average Recall"
    span = "0.50:0.95" if iou is None else f"{iou:0.2f}"
    return f" {title:<18} ({what}) @[ IoU={span:<9} | area={area:>6s} | maxDets={limit:>3d} ] = {value:0.3f}"


def _ground_truth(records: Sequence[Record], names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """The records as a COCO data set in memory; images are numbered from 1 in their order."""
    rows = [
        (position, int(label), bool(ignore), *box)
        for position, record in enumerate(records, 1)
        for box, label, ignore in zip(
            record.boxes_N4.tolist(), record.labels_N.tolist(), record.ignore_N.tolist(), strict=True
        )
    ]
    return {
        "images": [{"id": position} for position in range(1, len(records) + 1)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(names)],
        "annotations": [
            {
                "id": number,  # from 1: the evaluator takes 0 for "not matched"
                "image_id": image,
                "category_id": label,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": int(ignore),
            }
            for number, (image, label, ignore, x1, y1, x2, y2) in enumerate(rows, 1)
            if x2 > x1 and y2 > y1
        ],
    }


def _results(detections: Sequence[Detections], names: Sequence[str]) -> list[dict[str, Any]]:
    """The detections as COCO annotations with scores, numbered as in `_ground_truth`; twice as fast as ``loadRes``."""
    ids = range(len(names))
    rows = [
        row
        for position, found in enumerate(detections, 1)
        for row in renamed(found, names).to_coco(position, ids, rounded=False)
    ]
    for number, row in enumerate(rows, 1):
        row |= {"id": number, "area": row["bbox"][2] * row["bbox"][3]}
    return rows


def renamed(found: Detections, names: Sequence[str]) -> Detections:
    """The same detections with their classes' positions in `names`, without those of other classes."""
    labels_N = positions_in(names, found.names)[found.labels_N]
    keep_N = labels_N >= 0
    return Detections(found.boxes_N4[keep_N], found.scores_N[keep_N], labels_N[keep_N], tuple(names))


def positions_in(names: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """The position of each of these classes in `names`, int64; -1 where it is not there."""
    where = {name: position for position, name in enumerate(names)}
    return np.array([where.get(name, -1) for name in classes], np.int64)


def _count(annotations: Sequence[dict[str, Any]], n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and objects of each class, ignored objects left out."""
    real = [(a["category_id"], a["image_id"]) for a in annotations if not a["iscrowd"]]
    boxes_K = np.bincount([k for k, _ in real], minlength=n_classes)
    images_K = np.bincount([k for k, _ in set(real)], minlength=n_classes)
    return images_K, boxes_K

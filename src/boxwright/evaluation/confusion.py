"""The confusion matrix: which classes a detector takes for which.

Rows are the annotated classes, columns the predicted ones; the last row and the last column are the background.
A missed object counts in the last column of its row, a false alarm in the last row of its column, and the
corner of both stays 0. Each object and each detection is counted once.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import numpy as np

from boxwright.data.records import Record
from boxwright.evaluation.coco import renamed
from boxwright.evaluation.matches import overlaps
from boxwright.files import csv_text
from boxwright.types import Detections

BACKGROUND = "background"


def confusion(
    records: Sequence[Record],
    detections: Sequence[Detections],
    names: Sequence[str],
    threshold: float | Sequence[float] = 0.5,
    iou: float = 0.5,
) -> np.ndarray:
    """Count annotated against predicted classes, (K + 1, K + 1) int64.

    In the order of their scores, each detection is matched to one free object that it overlaps, the one of highest IoU;
    objects of its own class come first. A detection left over is a false alarm, unless it lies on an ignored object of
    its class (with half of its own area or more, COCO's rule for crowds): then neither counts.

    Args:
        records: the images; `labels_N` are positions in `names`.
        detections: one for each record, in the same order; classes are matched by name, others are left out.
        names: the classes of the data.
        threshold: detections with this score or less are not counted; one number, or one for each of `names`.
        iou: the least overlap of a detection with the object that it matches.
    """
    assert len(records) == len(detections)
    matrix = np.zeros((len(names) + 1, len(names) + 1), np.int64)
    for record, found in zip(records, detections, strict=True):
        found = renamed(found, names).above(threshold)
        order_D = np.argsort(-found.scores_N, kind="stable")
        _count_image(matrix, record, found.boxes_N4[order_D].astype(float), found.labels_N[order_D], iou)
    return matrix


def to_csv(matrix: np.ndarray, names: Sequence[str]) -> str:
    """The matrix with its names; the first cell says how to read it. No name is taken for a formula."""
    text, cells = io.StringIO(), [csv_text(name) for name in (*names, BACKGROUND)]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["true \\ predicted", *cells])
    writer.writerows([name, *row] for name, row in zip(cells, matrix.tolist(), strict=True))
    return text.getvalue()


def _count_image(matrix: np.ndarray, record: Record, boxes_D4: np.ndarray, labels_D: np.ndarray, iou: float) -> None:
    """Add one image to the matrix; detections come best first."""
    has_area_N = (record.boxes_N4[:, 2:] > record.boxes_N4[:, :2]).all(1)
    real_N, ignored_N = has_area_N & ~record.ignore_N, has_area_N & record.ignore_N
    overlap_DN, cover_DN = overlaps(boxes_D4, record.boxes_N4)
    free_N = real_N.copy()
    for overlap_N, cover_N, label in zip(overlap_DN, cover_DN, labels_D, strict=True):
        same_N = record.labels_N == label
        candidates_N = free_N & (overlap_N >= iou)
        if candidates_N.any():
            matched = np.argmax(np.where(candidates_N, overlap_N + same_N, -1))
            free_N[matched] = False
            matrix[record.labels_N[matched], label] += 1
        elif not (ignored_N & same_N & (cover_N >= iou)).any():
            matrix[-1, label] += 1
    np.add.at(matrix[:, -1], record.labels_N[free_N], 1)

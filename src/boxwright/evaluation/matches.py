"""Which detections are right: what calibration and score thresholds are measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from boxwright.data.records import Record
from boxwright.detections import Detections

IOU = 0.5  # least overlap of a detection with the object that it matches


@dataclass(frozen=True, eq=False)
class Matches:
    """The D detections of a set of images, with the matches of AP50: best scores first, each to the free object of its
    class that it overlaps most. Those that match an ignored object are left out.

    Attributes:
        scores_D: in [0, 1].
        labels_D: positions of their classes, int64.
        right_D: whether each matches an object.
        objects_K: number of objects of each class, without ignored ones.
    """

    scores_D: np.ndarray
    labels_D: np.ndarray
    right_D: np.ndarray
    objects_K: np.ndarray

    def of_class(self, label: int) -> Matches:
        """Detections and objects of one class, as the only one."""
        keep_D = self.labels_D == label
        scores_D, labels_D, right_D = self.scores_D[keep_D], self.labels_D[keep_D], self.right_D[keep_D]
        return Matches(scores_D, labels_D - label, right_D, self.objects_K[label : label + 1])


def match(records: Sequence[Record], detections: Sequence[Detections], objects_K: np.ndarray) -> Matches:
    """Match the detections of each image.

    The same matches as pycocotools' (`tests/evaluation/test_calibration.py`), in a tenth of the time: training needs
    them after each epoch, and the evaluation of AP doesn't tell those of a single IoU.

    Args:
        records: the images.
        detections: one for each record, with class positions as those of the records.
        objects_K: number of objects of each class, without ignored ones.
    """
    scores, labels, right = [np.zeros(0)], [np.zeros(0, np.int64)], [np.zeros(0, bool)]
    for record, found in zip(records, detections, strict=True):
        order_D = np.argsort(-found.scores_N, kind="stable")
        right_D, ignored_D = _match_image(record, found.boxes_N4[order_D].astype(float), found.labels_N[order_D])
        kept_D = order_D[~ignored_D]
        scores.append(found.scores_N[kept_D].astype(float))
        labels.append(found.labels_N[kept_D])
        right.append(right_D[~ignored_D])
    return Matches(np.concatenate(scores), np.concatenate(labels), np.concatenate(right), objects_K)


def _match_image(record: Record, boxes_D4: np.ndarray, labels_D: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether each detection, best first, matches an object, and whether it only matches an ignored one, both (D,)."""
    overlap_DN, cover_DN = overlaps(boxes_D4, record.boxes_N4)
    has_area_N = (record.boxes_N4[:, 2:] > record.boxes_N4[:, :2]).all(1)
    same_DN = has_area_N & (labels_D[:, None] == record.labels_N)
    near_DN = same_DN & (np.where(record.ignore_N, cover_DN, overlap_DN) >= IOU)
    free_N, right_D, ignored_D = ~record.ignore_N, np.zeros(len(boxes_D4), bool), np.zeros(len(boxes_D4), bool)
    for d in np.flatnonzero(near_DN.any(1)):
        candidates = np.flatnonzero(near_DN[d] & free_N)
        if len(candidates):
            overlap = overlap_DN[d, candidates]
            free_N[candidates[np.flatnonzero(overlap == overlap.max())[-1]]] = False  # of equal ones the last, as COCO
            right_D[d] = True
        else:
            ignored_D[d] = (near_DN[d] & record.ignore_N).any()
    return right_D, ignored_D


def overlaps(boxes_D4: np.ndarray, boxes_N4: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """IoU of each detection with each object, and the fraction of the detection inside the object, both (D, N)."""
    corner_DN2 = np.minimum(boxes_D4[:, None, 2:], boxes_N4[:, 2:]) - np.maximum(boxes_D4[:, None, :2], boxes_N4[:, :2])
    shared_DN = corner_DN2.clip(min=0).prod(-1)
    area_D1 = (boxes_D4[:, 2:] - boxes_D4[:, :2]).prod(-1)[:, None]
    area_N = (boxes_N4[:, 2:] - boxes_N4[:, :2]).prod(-1)
    tiny = np.finfo(float).tiny
    return shared_DN / (area_D1 + area_N - shared_DN).clip(min=tiny), shared_DN / area_D1.clip(min=tiny)

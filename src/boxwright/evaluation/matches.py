"""Which detections are right: what calibration and score thresholds are measured on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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

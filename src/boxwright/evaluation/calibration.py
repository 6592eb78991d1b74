"""How far a score can be believed: the expected calibration error of detections.

Kueppers et al. 2020 (2004.13546), with the score as the only coordinate: detections are sorted into bins by their
score, and in each bin the mean score is compared with the precision, the fraction of detections that match an object.
Of 100 detections with a score of about 0.7, 70 should be right.

Below `FLOOR` detections don't count. Every detector fills an image up to 100 boxes with scores close to 0, which are
wrong, as they say; being most of all detections, they would make any detector look calibrated. The floor is the one
below which torchvision's Faster R-CNN and RetinaNet drop detections; a higher one would leave a detector of low scores
none to judge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from boxwright.evaluation.matches import IOU

FLOOR = 0.05  # least score that counts
BINS = 10  # of equal width, from 0 to 1
ROUNDING = 1e-5  # of a bin: a score of 0.9 in float32 belongs to the bin from 0.9


@dataclass(frozen=True, eq=False)
class Calibration:
    """Scores and precision of detections, M bins of equal width from 0 to 1.

    Attributes:
        detections_M: number of detections with a score of `FLOOR` or more in each bin, int64.
        scores_M: their mean score, in [0, 1]; 0 in an empty bin, here and below.
        precision_M: the fraction that is right, in [0, 1].
    """

    detections_M: np.ndarray
    scores_M: np.ndarray
    precision_M: np.ndarray

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean over detections of |score - precision| of the bin, in [0, 1], best 0;
        -1 without detections.
        """
        return self._mean(np.abs(self.scores_M - self.precision_M))

    @property
    def score(self) -> float:
        """Mean score of the detections; -1 without any."""
        return self._mean(self.scores_M)

    @property
    def precision(self) -> float:
        """Precision of the detections; -1 without any."""
        return self._mean(self.precision_M)

    def summary(self) -> str:
        """One line that says what the error means."""
        if self.ece < 0:
            return f"Expected calibration error: undefined, no detection has a score of {FLOOR} or more"
        side = "overconfident" if self.score > self.precision else "underconfident"
        return (
            f"Expected calibration error {self.ece:.3f}: {int(self.detections_M.sum()):,} detections with a score of "
            f"{FLOOR} or more have a mean score of {self.score:.3f} and a precision of {self.precision:.3f} at IoU "
            f"{IOU:.2f} ({side})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON; the bins with the least score of each."""
        starts_M = (np.arange(BINS) / BINS).clip(min=FLOOR)
        columns = (starts_M, self.detections_M, self.scores_M, self.precision_M)
        keys = ("from", "detections", "score", "precision")
        bins = [dict(zip(keys, row, strict=True)) for row in zip(*(c.tolist() for c in columns), strict=True)]
        return {"ece": self.ece, "floor": FLOOR, "iou": IOU, "bins": bins}

    def _mean(self, values_M: np.ndarray) -> float:
        detections = self.detections_M.sum()
        return float(values_M @ self.detections_M / detections) if detections else -1.0


def calibrate(scores_D: np.ndarray, right_D: np.ndarray) -> Calibration:
    """Sort detections into bins by their scores, and compare scores with precision.

    Args:
        scores_D: in [0, 1]; those under `FLOOR` are left out.
        right_D: whether each matches an object.
    """
    counted_D = scores_D >= FLOOR
    scores_D, right_D = scores_D[counted_D], right_D[counted_D]
    bins_D = (scores_D * BINS + ROUNDING).astype(np.int64).clip(0, BINS - 1)
    detections_M = np.bincount(bins_D, minlength=BINS)
    some_M = detections_M.clip(min=1)
    scores_M = np.bincount(bins_D, scores_D, BINS) / some_M
    return Calibration(detections_M, scores_M, np.bincount(bins_D, right_D, BINS) / some_M)

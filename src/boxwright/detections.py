"""The objects detected in an image, in pixels of its file. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from boxwright.extras import how_to_install

if TYPE_CHECKING:
    import supervision


@dataclass
class Detections:
    """The objects detected in one image, best first.

    Attributes:
        boxes_N4: xyxy in pixels of the original image, float32.
        scores_N: in [0, 1], float32.
        labels_N: position of each object's class in `names`, int64.
        names: the classes the detector knows.
    """

    boxes_N4: np.ndarray
    scores_N: np.ndarray
    labels_N: np.ndarray
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.scores_N)

    def above(self, threshold: float | Sequence[float]) -> Detections:
        """The objects whose score is over the threshold: one number, or one for each class of `names`."""
        limits = np.asarray(threshold, np.float32)
        keep = self.scores_N > (limits[self.labels_N] if limits.ndim else limits)
        return Detections(self.boxes_N4[keep], self.scores_N[keep], self.labels_N[keep], self.names)

    def to_supervision(self) -> supervision.Detections:
        """The same objects for the `supervision` library; class names are in ``data["class_name"]``."""
        try:
            import supervision
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(how_to_install("to_supervision()", error.name), name=error.name) from error

        return supervision.Detections(
            xyxy=self.boxes_N4,
            confidence=self.scores_N,
            class_id=self.labels_N,
            data={"class_name": np.array([self.names[i] for i in self.labels_N], dtype=object)},
        )

    def to_coco(
        self, image_id: int | str, category_ids: Sequence[int] | None = None, rounded: bool = True
    ) -> list[dict[str, Any]]:
        """COCO result rows.

        Args:
            image_id: of the image.
            category_ids: the id of each class; by default its position + 1.
            rounded: boxes to thousandths of a pixel and scores to five digits, for files.
        """
        ids = category_ids or range(1, len(self.names) + 1)
        x1, y1, x2, y2 = self.boxes_N4.T.astype(float)
        xywh_N4, scores = np.stack([x1, y1, x2 - x1, y2 - y1], axis=1), self.scores_N.tolist()
        if rounded:
            xywh_N4, scores = xywh_N4.round(3), [round(score, 5) for score in scores]
        return [
            {"image_id": image_id, "category_id": int(ids[label]), "bbox": box, "score": score}
            for label, box, score in zip(self.labels_N.tolist(), xywh_N4.tolist(), scores, strict=True)
        ]

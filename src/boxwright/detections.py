"""The objects detected in an image, in pixels of its file. Nothing here needs torch."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
from PIL import Image

from boxwright.classes import class_positions
from boxwright.config import require
from boxwright.drawing import draw
from boxwright.extras import how_to_install

if TYPE_CHECKING:
    import pandas
    import supervision

_SHOWN = 5  # objects in the text of `repr`


class Detection(NamedTuple):
    """One object.

    Attributes:
        box: x1, y1, x2, y2 in pixels of the original image.
        score: in [0, 1].
        label: position of its class in the detector's `names`.
        name: its class.
    """

    box: tuple[float, float, float, float]
    score: float
    label: int
    name: str


@dataclass
class Detections:
    """The objects detected in one image, best first: a sequence of `Detection`, and the same as arrays.

    >>> found = Detections(np.array([[1, 2, 30, 40], [5, 6, 7, 8]], np.float32), np.array([0.75, 0.5], np.float32),
    ...                    np.array([0, 1]), ("cat", "dog"))
    >>> [object.name for object in found], found[0].box, len(found.of("dog"))
    (['cat', 'dog'], (1.0, 2.0, 30.0, 40.0), 1)
    >>> found[found.scores > 0.6]
    1 object: cat 0.75

    Attributes:
        boxes_N4: xyxy in pixels of the original image, float32.
        scores_N: in [0, 1], float32.
        labels_N: position of each object's class in `names`, int64.
        names: the classes the detector knows.
        size: width and height of the image, in pixels; None where only the boxes are known.
        image: makes the image, for `plot`; None where it is not known.
    """

    boxes_N4: np.ndarray
    scores_N: np.ndarray
    labels_N: np.ndarray
    names: tuple[str, ...]
    size: tuple[int, int] | None = field(default=None, compare=False)
    image: Callable[[], Image.Image] | None = field(default=None, compare=False, repr=False)

    @property
    def boxes(self) -> np.ndarray:
        """`boxes_N4`."""
        return self.boxes_N4

    @property
    def scores(self) -> np.ndarray:
        """`scores_N`."""
        return self.scores_N

    @property
    def labels(self) -> np.ndarray:
        """`labels_N`."""
        return self.labels_N

    def __len__(self) -> int:
        return len(self.scores_N)

    def __iter__(self) -> Iterator[Detection]:
        return (self[i] for i in range(len(self)))

    @overload
    def __getitem__(self, which: int) -> Detection: ...
    @overload
    def __getitem__(self, which: slice | Sequence[int] | Sequence[bool] | np.ndarray) -> Detections: ...
    def __getitem__(self, which: Any) -> Detection | Detections:
        """One object by its position; several by a slice, their positions, or a mask of True and False."""
        if isinstance(which, int | np.integer) and not isinstance(which, bool):
            label = int(self.labels_N[which])
            x1, y1, x2, y2 = self.boxes_N4[which].tolist()
            return Detection((x1, y1, x2, y2), float(self.scores_N[which]), label, self.names[label])
        rows = which if isinstance(which, slice) else self._rows(which)
        return Detections(
            self.boxes_N4[rows], self.scores_N[rows], self.labels_N[rows], self.names, self.size, self.image
        )

    def _rows(self, which: Any) -> np.ndarray:
        rows = np.asarray(which)
        rows = rows.astype(int) if rows.size == 0 and rows.dtype.kind == "f" else rows  # []
        what = "a position, a slice, a list of positions, or a True or False for each object"
        require(rows.ndim == 1 and rows.dtype.kind in "iub", f"objects are chosen by {what}, not by {which!r:.60}.")
        wrong = rows.dtype.kind == "b" and len(rows) != len(self)
        require(not wrong, f"{len(rows)} of True and False choose among {len(self)} objects; give one for each.")
        return rows

    def __repr__(self) -> str:
        listed = ", ".join(f"{found.name} {found.score:.2f}" for found in self[:_SHOWN])
        more = ", ..." if len(self) > _SHOWN else ""
        return f"{len(self)} object{'s' * (len(self) != 1)}{': ' * bool(len(self))}{listed}{more}"

    def _repr_png_(self) -> bytes | None:
        """The picture that a notebook shows; it shows the text where the image is not known."""
        if self.image is None:
            return None
        stream = io.BytesIO()
        self.plot().save(stream, format="png")
        return stream.getvalue()

    def above(self, threshold: float | Sequence[float]) -> Detections:
        """The objects whose score is over the threshold: one number, or one for each class of `names`."""
        limits = np.asarray(threshold, np.float32)
        return self[self.scores_N > (limits[self.labels_N] if limits.ndim else limits)]

    def of(self, *classes: str | int) -> Detections:
        """The objects of these classes, by name or position.

        Raises:
            UserError: for a class that the detector doesn't know.
        """
        return self[np.isin(self.labels_N, class_positions(classes, self.names) or [])]

    def plot(self, image: Image.Image | None = None) -> Image.Image:
        """The image with the boxes, each with class and score.

        Args:
            image: in mode RGB, as displayed; by default that in which the objects were detected, read once more.

        Raises:
            UserError: if there is no image to draw on.
        """
        known = image is not None or self.image is not None
        require(known, "the image of these objects is not kept; give it: found.plot(image).")
        picture = image if image is not None else self.image()  # type: ignore[misc]
        return draw(picture, self)

    def to_dict(self) -> dict[str, Any]:
        """Plain Python: ``width`` and ``height`` of the image, and ``objects``, each with ``name``, ``score``, ``box``.

        Boxes are xyxy in thousandths of a pixel, scores have five digits.
        """
        width, height = self.size or (None, None)
        objects = [
            {"name": found.name, "score": round(found.score, 5), "box": [round(side, 3) for side in found.box]}
            for found in self
        ]
        return {"width": width, "height": height, "objects": objects}

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict())

    def to_yolo(self, scores: bool = True, size: tuple[int, int] | None = None) -> str:
        """The text of a YOLO label file: a row ``class cx cy width height [score]`` for each object.

        Centre and size are fractions of the image.

        Args:
            scores: as a sixth column, as Ultralytics' ``save_conf`` has it; label files to train on have none.
            size: width and height of the image, in pixels, where they are not known.

        Raises:
            UserError: if the size of the image is not known.
        """
        size = size or self.size
        require(size, "YOLO's boxes are fractions of the image, whose size is not known; give size=(width, height).")
        assert size is not None
        sides = np.array(size, float)
        corners_N4 = self.boxes_N4.astype(float)
        cxcywh_N4 = np.concatenate(
            [(corners_N4[:, :2] + corners_N4[:, 2:]) / 2 / sides, (corners_N4[:, 2:] - corners_N4[:, :2]) / sides], 1
        )
        rows = [
            f"{label} {' '.join(f'{value:.6f}' for value in box)}{f' {score:.5f}' * scores}\n"
            for label, box, score in zip(
                self.labels_N.tolist(), cxcywh_N4.tolist(), self.scores_N.tolist(), strict=True
            )
        ]
        return "".join(rows)

    def to_pandas(self) -> pandas.DataFrame:
        """A table with the columns ``x1 y1 x2 y2 score label name``."""
        try:
            import pandas
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "to_pandas() needs pandas: python -m pip install pandas", name=error.name
            ) from error

        columns = dict(zip(("x1", "y1", "x2", "y2"), self.boxes_N4.T, strict=True))
        names = [self.names[i] for i in self.labels_N]
        return pandas.DataFrame({**columns, "score": self.scores_N, "label": self.labels_N, "name": names})

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

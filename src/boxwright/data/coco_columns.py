"""What a COCO file holds, in columns: a million annotations take tens of megabytes, not a gigabyte of dictionaries."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from boxwright.data.formats.shapes import MalformedError, segmentation_box
from boxwright.data.id_column import IdColumn, number
from boxwright.data.image_index import clean_name

NOT_A_BOX = (float("nan"),) * 4


@dataclass
class ImageRows:
    """The images of a file: ids, names as written, and sizes in pixels, 0 where none is given."""

    ids: IdColumn = field(default_factory=IdColumn)
    names: list[str] = field(default_factory=list)
    sizes: array[int] = field(default_factory=lambda: array("i"))  # width, height, width, ...

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a record that has an id and a name."""
        self.ids.append(row["id"])
        self.names.append(file_name(row))
        self.sizes.extend((_to_integer(row.get("width")), _to_integer(row.get("height"))))

    def without(self, rows: Collection[int]) -> ImageRows:
        """The others."""
        kept = [row for row in range(len(self.names)) if row not in rows]
        sizes = array("i", np.array(self.sizes, np.intc).reshape(-1, 2)[kept].tobytes())
        return ImageRows(IdColumn(self.ids[row] for row in kept), [self.names[row] for row in kept], sizes)


class AnnotationRows:
    """The annotations of a file.

    Attributes:
        image_ids, category_ids: as written.
        marks: ids of the annotations; ``number N`` where there is none.
        boxes: four numbers each, xyxy in pixels.
        ignore: 1 for crowds and difficult objects.
        problems: by row, what is wrong with a box.
        derived: how many boxes are those of a segmentation.
    """

    def __init__(self) -> None:
        self.image_ids, self.category_ids, self.marks = IdColumn(), IdColumn(), IdColumn()
        self.boxes, self.ignore = array("d"), bytearray()
        self.problems: dict[int, str] = {}
        self.derived = 0

    def __len__(self) -> int:
        return len(self.ignore)

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a record that has an `image_id`, a `category_id`, and a `bbox` or `segmentation`."""
        box = _box(row)
        if isinstance(box, str):
            self.problems[len(self)] = box
        self.boxes.extend(NOT_A_BOX if isinstance(box, str) else box)
        self.derived += row.get("bbox") is None
        mark = row.get("id")
        self.marks.append(mark if isinstance(mark, (int, str)) else f"number {len(self) + 1}")
        self.image_ids.append(row["image_id"])
        self.category_ids.append(row["category_id"])
        self.ignore.append(_flag(row.get("iscrowd")) or _flag(row.get("difficult")))


@dataclass
class CocoContent:
    """A COCO file.

    Attributes:
        images, annotations: in columns.
        categories: records with an `id`, an integer where it is one in any form, and a `name`.
    """

    images: ImageRows = field(default_factory=ImageRows)
    annotations: AnnotationRows = field(default_factory=AnnotationRows)
    categories: list[dict[str, Any]] = field(default_factory=list)

    def finish(self) -> None:
        """Find the category of each annotation, once all is added."""
        for row in self.categories:
            row["id"] = number(row["id"])
        ids: Sequence[Any] = list(dict.fromkeys(row["id"] for row in self.categories))
        self._category_ids = ids
        column = self.annotations.category_ids
        places = column.positions_in(IdColumn(ids))
        self._categories = places.astype(np.min_scalar_type(-1 - len(ids)))
        column.keep_only(np.flatnonzero(self._categories < 0).tolist())

    def used_ids(self) -> set[Any]:
        """Ids of the categories that have annotations."""
        return {self._category_ids[k] for k in np.unique(self._categories).tolist() if k >= 0}

    def category_id(self, row: int) -> Any:
        """The category id of an annotation, as written if there is no such category."""
        category = int(self._categories[row])
        return self.annotations.category_ids[row] if category < 0 else self._category_ids[category]

    def labels(self, classes: Mapping[Any, int]) -> np.ndarray:
        """The class of each annotation, int32, by the class of each category id; -1 where it has none."""
        table = np.array([*(classes.get(id_, -1) for id_ in self._category_ids), -1], np.int32)
        return table[self._categories]


def file_name(row: Mapping[str, Any]) -> str:
    """The file name of an image; LVIS gives only its address, `coco_url`."""
    return str(row.get("file_name") or clean_name(str(row.get("coco_url") or "")))


def _to_integer(value: object) -> int:
    return int(value) if isinstance(value, (int, float)) and value == value and abs(value) < 1e9 else 0


def _flag(value: object) -> bool:
    return value is not None and value != 0 and str(value).strip().lower() in ("1", "1.0", "true")


def _box(row: Mapping[str, Any]) -> Iterable[float] | str:
    """The box of an annotation, or of its segmentation where it has no box; else what is wrong."""
    bbox, segmentation = row.get("bbox"), row.get("segmentation")
    try:
        if bbox is None and segmentation is not None:
            return segmentation_box(segmentation)
        x, y, width, height = map(float, bbox)  # type: ignore[arg-type]
    except MalformedError as error:
        return str(error)
    except (TypeError, ValueError, KeyError, OverflowError):
        if bbox is None:
            return "`segmentation` is neither polygons nor a mask"
        return f"`bbox` is not four numbers: {bbox!s:.60}"
    return x, y, x + width, y + height

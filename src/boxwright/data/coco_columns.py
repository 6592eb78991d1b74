"""What a COCO file holds, in columns: a million annotations take tens of megabytes, not a gigabyte of dictionaries."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import numpy as np

from boxwright.data.formats.shapes import MalformedError, segmentation_box
from boxwright.data.image_index import clean_name

NOT_A_BOX = (float("nan"),) * 4


class IdColumn:
    """Ids one after another. All but the few that are no integers take 8 bytes each."""

    def __init__(self) -> None:
        self.numbers = array("q")
        self.others: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, row: int) -> Any:
        return self.others.get(row, self.numbers[row])

    def append(self, id_: Any) -> None:
        """Add an id of any type."""
        if type(id_) is int and abs(id_) < 2**63:
            self.numbers.append(id_)
        else:
            self.others[len(self.numbers)] = id_
            self.numbers.append(0)

    def positions_in(self, positions: Mapping[Any, int]) -> np.ndarray:
        """The position of each id, int32; -1 where it has none. An id may be a number here and its text there."""
        numbers = Counter(number(id_) for id_ in positions) if any(type(id_) is not int for id_ in positions) else {}
        own = {number(id_): position for id_, position in positions.items() if numbers.get(number(id_)) == 1}
        known = {**own, **positions} if own else positions
        found = np.fromiter(map(known.get, self.numbers, repeat(-1)), np.int32, len(self))
        for row, id_ in self.others.items():
            found[row] = known.get(id_, known.get(number(id_), -1)) if hashable(id_) else -1
        return found

    def repeated(self) -> Iterator[tuple[Any, int]]:
        """Each id that occurs several times, and how often."""
        numbers = np.frombuffer(self.numbers, np.int64) if self.numbers else np.empty(0, np.int64)
        if self.others:
            numbers = np.delete(numbers, list(self.others))
        ordered = np.sort(numbers)
        for id_ in dict.fromkeys(ordered[1:][ordered[1:] == ordered[:-1]].tolist()):
            yield id_, int((numbers == id_).sum())
        counts = Counter(map(str, self.others.values()))
        yield from ((id_, count) for id_, count in counts.items() if count > 1)


@dataclass
class ImageRows:
    """The images of a file: ids, names as written, and sizes in pixels, 0 where none is given."""

    ids: list[Any] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    sizes: array[int] = field(default_factory=lambda: array("i"))  # width, height, width, ...

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a record that has an id and a name."""
        self.ids.append(row["id"])
        self.names.append(file_name(row))
        self.sizes.extend((_to_integer(row.get("width")), _to_integer(row.get("height"))))


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
        self._categories = self.annotations.category_ids.positions_in({id_: k for k, id_ in enumerate(ids)})

    def used_ids(self) -> set[Any]:
        """Ids of the categories that have annotations."""
        return {self._category_ids[k] for k in np.unique(self._categories).tolist() if k >= 0}

    def labels(self, classes: Mapping[Any, int]) -> np.ndarray:
        """The class of each annotation, int32, by the class of each category id; -1 where it has none."""
        table = np.array([*(classes.get(id_, -1) for id_ in self._category_ids), -1], np.int32)
        return table[self._categories]


def file_name(row: Mapping[str, Any]) -> str:
    """The file name of an image; LVIS gives only its address, `coco_url`."""
    return str(row.get("file_name") or clean_name(str(row.get("coco_url") or "")))


def number(id_: Any) -> Any:
    """An id as an integer if it is an integral number or the text of one; otherwise as it is."""
    if isinstance(id_, str):
        return int(id_) if re.fullmatch(r"\s*-?[0-9]{1,18}\s*", id_) else id_
    return int(id_) if isinstance(id_, float) and id_.is_integer() else id_


def hashable(value: object) -> bool:
    """Whether a JSON value can be an id at all."""
    return not isinstance(value, (list, dict))


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

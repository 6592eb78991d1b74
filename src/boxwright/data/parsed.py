"""What a reader finds on disk, faults included, and the strict step from there to a `Dataset`.

A reader never stops at a fault: it notes it and goes on, so that `boxwright check` can report everything at once.
Training goes through `to_dataset`, which refuses what cannot be used and leaves out boxes without area.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import TypeVar

import numpy as np

from boxwright.config import UserError
from boxwright.data.faults import Fault
from boxwright.data.records import Dataset, Record
from boxwright.images import image_size

T = TypeVar("T")
R = TypeVar("R")


@dataclass
class ParsedImage:
    """One image with its objects as written.

    Attributes:
        path: the image file, which may be missing.
        width, height: in pixels; 0 when neither the annotation nor the file tells.
        image_id: see `Record`.
        source: annotation file and record.
        mark: how an object is named after `source`; ``{}`` takes its entry in `marks`.
        boxes: xyxy in pixels, unclipped, possibly not finite.
        labels: class positions, all of them known.
        ignore: True for `difficult` and `iscrowd`.
        marks: line, number or id of each object.
    """

    path: Path
    width: int
    height: int
    image_id: int
    source: str
    mark: str = ", object {}"
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    ignore: list[bool] = field(default_factory=list)
    marks: list[int | str] = field(default_factory=list)

    def add(self, box: tuple[float, float, float, float], label: int, ignore: bool, mark: int | str) -> None:
        """Append one object."""
        self.boxes.append(box)
        self.labels.append(label)
        self.ignore.append(ignore)
        self.marks.append(mark)

    def where(self, index: int) -> str:
        """File and record of one object."""
        return self.source + self.mark.format(self.marks[index])


@dataclass
class ParsedDataset:
    """A data set as found on disk, with all its faults. Attributes as in `Dataset`."""

    root: Path
    format: str
    names: tuple[str, ...] = ()
    splits: dict[str, list[ParsedImage]] = field(default_factory=dict)
    category_ids: tuple[int, ...] = ()
    faults: list[Fault] = field(default_factory=list)

    def fault(self, kind: str, where: object, what: str) -> None:
        """Note a fault."""
        self.faults.append(Fault(kind, str(where), what))


def to_dataset(raw: ParsedDataset, empty_boxes: bool = False) -> tuple[Dataset, int]:
    """The data set, and the number of objects left out because they have no usable box.

    Args:
        raw: as read.
        empty_boxes: keep boxes that have no area inside the image; boxes that are not finite never stay.

    Raises:
        UserError: the data has faults that cannot be passed over; the message quotes the first three.
    """
    refuse(raw)
    splits = {split: [_record(image, empty_boxes) for image in images] for split, images in raw.splits.items()}
    found = sum(len(image.boxes) for images in raw.splits.values() for image in images)
    kept = sum(len(record.boxes_N4) for records in splits.values() for record in records)
    orphans = sum(fault.kind == "orphan-annotation" for fault in raw.faults)
    return Dataset(raw.root, raw.format, raw.names, splits, raw.category_ids), found - kept + orphans


def _usable(box: tuple[float, float, float, float], width: int, height: int, empty: bool) -> bool:
    x1, y1, x2, y2 = box
    return all(map(isfinite, box)) and (empty or (min(x2, width) > max(x1, 0) and min(y2, height) > max(y1, 0)))


def refuse(raw: ParsedDataset) -> None:
    """Raise `UserError` when the data has faults that cannot be passed over."""
    fatal = [fault for fault in raw.faults if fault.fatal]
    if len(fatal) == 1:
        raise UserError(str(fatal[0]))
    if fatal:
        shown, more = " | ".join(map(str, fatal[:3])), len(fatal) - 3
        rest = f" | and {more} more" if more > 0 else ""
        raise UserError(f"{raw.root} has {len(fatal)} faults (`boxwright check {raw.root}` lists all): {shown}{rest}")
    if not any(raw.splits.values()):
        raise UserError(f"{raw.root} holds no images; give a folder with at least one annotated image")
    if not raw.names:
        raise UserError(f"{raw.root} names no classes: no object is annotated; annotate at least one")


def _record(image: ParsedImage, empty_boxes: bool) -> Record:
    boxes_N4 = np.array(image.boxes, dtype=np.float64).reshape(-1, 4)
    kept = np.array([_usable(box, image.width, image.height, empty_boxes) for box in image.boxes], dtype=bool)
    return Record(
        path=image.path,
        width=image.width,
        height=image.height,
        boxes_N4=boxes_N4[kept],
        labels_N=np.array(image.labels, dtype=np.int64)[kept],
        ignore_N=np.array(image.ignore, dtype=bool)[kept],
        image_id=image.image_id,
        source=image.source,
    )


# Helpers that the readers share.


def read_text(path: Path, raw: ParsedDataset) -> str | None:
    """The file as text, or None and a fault."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raw.fault("broken-file", path, f"is not text in UTF-8 (byte {error.start})")
    except OSError as error:
        raw.fault("broken-file", path, f"cannot be read ({error.strerror})")
    return None


def in_threads(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """`map` over threads: files are read, and images decoded, while Python's lock is free."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(function, items))


def fill_sizes(raw: ParsedDataset, images: Sequence[ParsedImage]) -> None:
    """Take width and height from the image file where the annotation does not tell them."""
    unknown = [image for image in images if image.width <= 0 or image.height <= 0]
    sizes = in_threads(lambda image: _size_or_error(image.path), unknown)
    for image, size in zip(unknown, sizes, strict=True):
        if not isinstance(size, str):
            image.width, image.height = size
        elif image.path.is_file():
            raw.fault("undecodable-image", image.path, size)


def _size_or_error(path: Path) -> tuple[int, int] | str:
    try:
        return image_size(path)
    except UserError as error:
        return reason(error, path)


def reason(error: UserError, path: Path) -> str:
    """What is wrong with a file, without its name and the full stop."""
    return str(error).removeprefix(f"{path}: ").removesuffix(".")


def check_names(raw: ParsedDataset, where: object, names: Sequence[str]) -> None:
    """Note names that stand twice in a class list, or are empty."""
    for name in sorted({name for name in names if names.count(name) > 1}):
        raw.fault("duplicate-class", where, f"the class {name!r} is listed {names.count(name)} times")
    if "" in names:
        raw.fault("broken-record", where, "a class has an empty name")

"""A data set as parsed, faults included, and the strict step from there to a `Dataset`.

A reader records each fault and goes on, so that `boxwright check` reports all at once. Training goes through
`to_dataset`, which refuses fatal faults and leaves out boxes without area.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import TypeVar

import numpy as np

from boxwright.classes import is_printable
from boxwright.config import UserError
from boxwright.data.faults import Fault
from boxwright.data.records import Dataset, Record
from boxwright.files import PackedFile, is_file
from boxwright.images import image_size

T = TypeVar("T")
R = TypeVar("R")


@dataclass
class ParsedImage:
    """One image with its objects as annotated.

    Attributes:
        path: the image file, which may be missing, or lie in a shard.
        width, height: in pixels; 0 if neither the annotation nor the file gives them.
        image_id: see `Record`.
        source: annotation file and record, for error messages.
        mark: follows `source` in the name of an object; ``{}`` is replaced by its entry in `marks`.
        boxes: xyxy in pixels, unclipped, possibly not finite.
        labels: class positions.
        ignore: True for `difficult` and `iscrowd`.
        marks: line, number or id of each object.
    """

    path: Path | PackedFile
    width: int
    height: int
    image_id: int | str
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


class ParsedImages(Sequence[ParsedImage]):
    """Parsed images that are kept in another form than a list."""

    def records(self, empty_boxes: bool) -> tuple[Sequence[Record], int]:
        """Their records, with the usable boxes, and how many others there are; see `to_dataset`."""
        raise NotImplementedError


@dataclass
class ParsedDataset:
    """A data set with all its faults; other attributes as in `Dataset`."""

    root: Path | str
    format: str
    names: tuple[str, ...] = ()
    splits: dict[str, Sequence[ParsedImage]] = field(default_factory=dict)
    category_ids: tuple[int, ...] = ()
    split_ids: dict[str, tuple[int, ...]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def add_fault(self, kind: str, where: object, what: str) -> None:
        """Record a fault; what can't be printed in its texts is escaped."""
        self.faults.append(Fault(kind, printable(str(where)), printable(what)))


def printable(text: str) -> str:
    """A text with lone surrogates and control characters, line ends among them, as escapes."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return re.sub(r"[\x00-\x1f\x7f]", lambda match: repr(match[0])[1:-1], text)


def to_dataset(parsed: ParsedDataset, empty_boxes: bool = False) -> tuple[Dataset, int]:
    """The data set, and the number of objects left out because they have no usable box.

    Args:
        parsed: as a reader returns it.
        empty_boxes: keep boxes without area inside the image; boxes that are not finite are always left out.

    Raises:
        UserError: the data has fatal faults; the message quotes the first three.
    """
    _refuse_fatal(parsed)
    splits = {split: _records(images, empty_boxes) for split, images in parsed.splits.items()}
    dropped = sum(count for _, count in splits.values())
    orphans = sum(fault.kind == "orphan-annotation" for fault in parsed.faults)
    dataset = Dataset(parsed.root, parsed.format, parsed.names, {}, parsed.category_ids, parsed.split_ids)
    dataset.splits.update({split: records for split, (records, _) in splits.items()})
    return dataset, dropped + orphans


def is_usable(box: tuple[float, float, float, float], width: int, height: int, empty: bool = False) -> bool:
    """Whether a box is finite and, unless it may be `empty`, has area inside the image."""
    x1, y1, x2, y2 = box
    return all(map(isfinite, box)) and (empty or (min(x2, width) > max(x1, 0) and min(y2, height) > max(y1, 0)))


def _refuse_fatal(parsed: ParsedDataset) -> None:
    """Raise `UserError` if the data has fatal faults, no images or no classes."""
    fatal = [fault for fault in parsed.faults if fault.fatal] or empty_faults(parsed)
    if len(fatal) == 1:
        raise UserError(str(fatal[0]))
    if fatal:
        shown, more = " | ".join(map(str, fatal[:3])), len(fatal) - 3
        rest = f" | and {more} more" if more > 0 else ""
        raise UserError(
            f"{parsed.root} has {len(fatal)} faults (`boxwright check {parsed.root}` lists all): {shown}{rest}"
        )


def empty_faults(parsed: ParsedDataset) -> list[Fault]:
    """The fault of a data set without images, or without classes."""
    if not any(parsed.splits.values()):
        return [Fault("empty-data", str(parsed.root), "holds no images")]
    return [] if parsed.names else [Fault("empty-data", str(parsed.root), "names no classes: no object is annotated")]


def _records(images: Sequence[ParsedImage], empty_boxes: bool) -> tuple[Sequence[Record], int]:
    if isinstance(images, ParsedImages):
        return images.records(empty_boxes)
    records = [_record(image, empty_boxes) for image in images]
    return records, sum(map(len, (i.boxes for i in images))) - sum(len(record.boxes_N4) for record in records)


def _record(image: ParsedImage, empty_boxes: bool) -> Record:
    boxes_N4 = np.array(image.boxes, dtype=np.float64).reshape(-1, 4)
    kept = np.array([is_usable(box, image.width, image.height, empty_boxes) for box in image.boxes], dtype=bool)
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


def read_text(path: Path, parsed: ParsedDataset) -> str | None:
    """The text of a file in UTF-8, or in UTF-16 if it says so; None, and a fault recorded, if it can't be read."""
    if path.exists() and not path.is_file():
        parsed.add_fault("broken-file", path, "is not a file")
        return None
    try:
        with path.open("rb") as stream:
            encoding = text_encoding(stream.read(2))
        return path.read_text(encoding=encoding)
    except UnicodeDecodeError as error:
        parsed.add_fault("broken-file", path, f"is not text in UTF-8 (byte {error.start})")
    except OSError as error:
        parsed.add_fault("broken-file", path, f"cannot be read ({error.strerror})")
    return None


def text_encoding(start: bytes) -> str:
    """The encoding of a text by its first bytes: UTF-16, as `>` in Windows PowerShell writes it, or UTF-8."""
    return "utf-16" if start.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig"


def loose_text(content: bytes) -> str:
    """A text as in `read_text`, what can't be decoded replaced."""
    return content.decode(text_encoding(content), errors="replace")


def in_threads(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """`map` in threads, for functions that read files or decode images without holding Python's lock."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(function, items))


def fill_sizes(parsed: ParsedDataset, images: Sequence[ParsedImage]) -> None:
    """Take width and height from the image file where the annotation does not have them."""
    unknown = [image for image in images if image.width <= 0 or image.height <= 0]
    sizes = in_threads(lambda image: _size_or_error(image.path), unknown)
    for image, size in zip(unknown, sizes, strict=True):
        if not isinstance(size, str):
            image.width, image.height = size
        elif is_file(image.path):
            parsed.add_fault("undecodable-image", image.path, size)


def _size_or_error(path: Path | PackedFile) -> tuple[int, int] | str:
    try:
        return image_size(path)
    except UserError as error:
        return reason(error, path)


def reason(error: UserError, path: Path | PackedFile) -> str:
    """The reason in an error about `path`, without its name and the full stop."""
    return str(error).removeprefix(f"{path}: ").removesuffix(".")


def check_names(parsed: ParsedDataset, where: object, names: Sequence[str]) -> None:
    """Record names that are empty, have control characters or occur twice in a class list."""
    for name in sorted({name for name in names if names.count(name) > 1}):
        parsed.add_fault("duplicate-class", where, f"the class {name!r} is listed {names.count(name)} times")
    for name in dict.fromkeys(names):
        if not is_printable(name):
            parsed.add_fault("control-character", where, f"the class {name!r} has a control character")
    if "" in names:
        parsed.add_fault("broken-record", where, "a class has an empty name")


def listed_names(parsed: ParsedDataset, file: Path) -> list[str]:
    """The classes in a file of one name a line, checked."""
    names = [line.strip() for line in (read_text(file, parsed) or "").split("\n") if line.strip()]
    check_names(parsed, file, names)
    return names


def merged_lists(parsed: ParsedDataset, lists: Mapping[Path, Sequence[str]]) -> tuple[str, ...]:
    """The classes of several lists, those of the first list first; a fault is recorded for each list that differs."""
    first, names = next(iter(lists.items()))
    for file, others in lists.items():
        lacks, adds = [n for n in names if n not in others], [n for n in others if n not in names]
        if lacks or adds:
            parts = [f"lacks {quoted(lacks)}"] * bool(lacks) + [f"adds {quoted(adds)}"] * bool(adds)
            parsed.add_fault("class-lists-differ", file, f"{' and '.join(parts)}, compared with {first}")
    return tuple(dict.fromkeys(name for others in lists.values() for name in others))


def quoted(names: Sequence[str]) -> str:
    """The first names in quotation marks, with commas between, and how many more there are."""
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(repr(name) for name in names[:8]) + more

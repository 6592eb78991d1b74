"""Images and objects in columns: two million images with thirty million boxes take two gigabytes, and not twenty."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import overload

import numpy as np

from boxwright.data.id_column import IdColumn
from boxwright.data.records import Record
from boxwright.files import name_on_disk

_TOGETHER = 2**19  # rows that are looked at at once


@dataclass
class ImageColumns:
    """Images of one annotation file.

    Attributes:
        folder: of those that lie where their name says.
        file: the annotation file.
        names: as written there.
        ids: see `Record`.
        moved: the path of each image, by position, that lies elsewhere.
        sizes: width and height of each in turn, in pixels; 0 where they are unknown.
    """

    folder: str
    file: Path
    names: list[str]
    ids: IdColumn | Sequence[int | str]
    moved: dict[int, Path]
    sizes: array[int] = field(default_factory=lambda: array("i"))

    def path(self, position: int) -> Path:
        """The file of an image."""
        return self.moved.get(position) or Path(self.folder, name_on_disk(self.names[position]))

    def paths(self) -> Iterator[str]:
        """All of them as text, without a `Path` for each."""
        for position, name in enumerate(self.names):
            moved = self.moved.get(position)
            yield os.path.join(self.folder, name_on_disk(name)) if moved is None else str(moved)  # noqa: PTH118

    def source(self, position: int) -> str:
        """Annotation file and record, for error messages."""
        return f"{self.file}, image {self.ids[position]} ({self.names[position]})"

    @property
    def image_sizes(self) -> np.ndarray:
        """(width, height) of each image, (I, 2) int32."""
        return np.frombuffer(self.sizes, np.intc).reshape(-1, 2) if self.sizes else np.empty((0, 2), np.intc)


@dataclass(frozen=True)
class ObjectColumns:
    """The M objects of I images, those of an image one after another.

    Attributes:
        starts: the first object of each image, and their number, (I + 1,) int64.
        boxes_M4: xyxy in pixels, float64.
        labels_M: class positions, int32.
        ignore_M: see `Record`.
        rows_M: the place of each object in its file; None where it is the same.
    """

    starts: np.ndarray
    boxes_M4: np.ndarray
    labels_M: np.ndarray
    ignore_M: np.ndarray
    rows_M: np.ndarray | None = None

    @staticmethod
    def grouped(
        images: int,
        image_A: np.ndarray,
        good_A: np.ndarray,
        boxes: array[float],
        label_A: np.ndarray,
        ignore: bytearray,
    ) -> ObjectColumns:
        """The good ones of A annotations, in the order of their images.

        Args:
            images: how many there are.
            image_A: position of each annotation's image, int32; -1 is written where it is not good.
            good_A: which to keep.
            boxes: of all annotations, four numbers each; they are put into this order in place, to save memory.
            label_A: class positions.
            ignore: 1 where ignored.
        """
        boxes_A4 = np.frombuffer(boxes, np.float64).reshape(-1, 4) if boxes else np.empty((0, 4))
        ignore_A = np.frombuffer(ignore, np.bool_) if ignore else np.empty(0, bool)
        image_A[~good_A] = -1
        starts = np.concatenate([[0], np.cumsum(counts_by_key(image_A, images))])
        if good_A.all() and (image_A[1:] >= image_A[:-1]).all():
            return ObjectColumns(starts, boxes_A4, label_A, ignore_A)
        rows = rows_by_key(image_A, images)
        for k in range(4):
            boxes_A4[: len(rows), k] = boxes_A4[rows, k]
        return ObjectColumns(starts, boxes_A4[: len(rows)], label_A[rows], ignore_A[rows], rows)

    @property
    def image_of_each(self) -> np.ndarray:
        """The position of each object's image, (M,) int32."""
        return np.repeat(np.arange(len(self.starts) - 1, dtype=np.int32), np.diff(self.starts))


def rows_by_key(keys_A: np.ndarray, count: int) -> np.ndarray:
    """The rows of each key in turn, those of one key in their order, int32; negative keys are left out.

    Args:
        keys_A: integers under `count`.
        count: of keys.
    """
    ends_K = np.cumsum(counts_by_key(keys_A, count))
    next_K = np.concatenate([[0], ends_K])[:-1]
    rows = np.empty(ends_K[-1] if count else 0, np.int32)
    for block in _blocks(len(keys_A)):  # numpy's argsort of all would take 8 bytes a row twice
        own = np.flatnonzero(keys_A[block] >= 0)
        own = own[np.argsort(keys_A[block][own], kind="stable")]
        keys = keys_A[block][own]
        used, first, counts = np.unique(keys, return_index=True, return_counts=True)
        rows[next_K[keys] + np.arange(len(own)) - np.repeat(first, counts)] = own + block.start
        next_K[used] += counts
    return rows


def counts_by_key(keys_A: np.ndarray, count: int) -> np.ndarray:
    """How many rows each key has, (count,) int64; arguments as of `rows_by_key`."""
    counts_K = np.zeros(count, np.int64)
    for block in _blocks(len(keys_A)):  # numpy's bincount of all would take 8 bytes a row
        counts_K += np.bincount(keys_A[block][keys_A[block] >= 0], minlength=count)
    return counts_K


def _blocks(rows: int) -> list[slice]:
    return [slice(first, first + _TOGETHER) for first in range(0, rows, _TOGETHER)]


def usable(boxes_M4: np.ndarray, sizes_M2: np.ndarray, empty: bool = False) -> np.ndarray:
    """(M,) which boxes are finite and, unless they may be `empty`, have area in an image of this (width, height)."""
    finite_M: np.ndarray = np.isfinite(boxes_M4).min(axis=1, initial=True)
    if empty:
        return finite_M
    with np.errstate(invalid="ignore"):
        inside_M2 = np.minimum(boxes_M4[:, 2:], sizes_M2) > np.maximum(boxes_M4[:, :2], 0)
    return np.logical_and(finite_M, inside_M2.all(1))


class RecordColumns(Sequence[Record]):
    """Records that are kept in another form than a list."""

    def take(self, indices: np.ndarray) -> RecordColumns:
        """The records at these places."""
        raise NotImplementedError

    def columns(self) -> FlatRecords:
        """All of it as arrays."""
        raise NotImplementedError

    def relabelled(self, labels: np.ndarray) -> RecordColumns:
        """The same records with other class positions, given for each label, int64."""
        raise NotImplementedError


def all_usable(sizes_I2: np.ndarray, objects: ObjectColumns, empty: bool = False) -> np.ndarray:
    """`usable` of all objects of these images, a block at a time."""
    image_M, boxes_M4 = objects.image_of_each, objects.boxes_M4
    each = (usable(boxes_M4[b], sizes_I2[image_M[b]], empty) for b in _blocks(len(image_M)))
    return np.concatenate([np.empty(0, bool), *each])


class RecordTable(RecordColumns):
    """Records in columns; each `Record` is made when it is asked for.

    Args:
        images: of a file.
        objects: of these images.
        keep_M: which objects it has; by default all.
    """

    def __init__(self, images: ImageColumns, objects: ObjectColumns, keep_M: np.ndarray | None = None) -> None:
        whole = keep_M is None or keep_M.all()
        self._images, self._boxes_M4, self._labels_M = images, objects.boxes_M4, objects.labels_M
        self._ignore_M, self._starts = objects.ignore_M, objects.starts
        self._rows: np.ndarray | None = None  # those that are kept, by their place in `starts`
        if not whole:
            self._rows = np.flatnonzero(keep_M).astype(np.int32)
            self._starts = np.concatenate([[0], np.cumsum(keep_M)])[objects.starts]
        self._positions = np.arange(len(images.names))  # of the images that it holds, in order
        self._label_of: np.ndarray | None = None  # another class position for each

    def __len__(self) -> int:
        return len(self._positions)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> RecordTable: ...
    def __getitem__(self, index: int | slice) -> Record | RecordTable:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        return self._record(int(self._positions[index]))

    def __iter__(self) -> Iterator[Record]:
        return map(self._record, self._positions.tolist())

    def __repr__(self) -> str:
        return f"<{len(self)} records of {self._images.file}>"

    def take(self, indices: np.ndarray) -> RecordTable:
        """The records at these places."""
        table = copy(self)
        table._positions = self._positions[indices]
        return table

    def relabelled(self, labels: np.ndarray) -> RecordTable:
        """The same records with other class positions, given for each label, int64."""
        table = copy(self)
        table._label_of = labels if self._label_of is None else labels[self._label_of]
        return table

    def paths(self) -> Iterator[str]:
        """The path of each image, as text."""
        return (str(self._images.path(position)) for position in self._positions.tolist())

    def columns(self) -> FlatRecords:
        """All of it as arrays."""
        starts_I = self._starts[self._positions]
        counts_I = self._starts[self._positions + 1] - starts_I
        first_I = np.cumsum(counts_I) - counts_I
        boxes_N4, labels_N, ignore_N = self._objects(
            np.repeat(starts_I - first_I, counts_I) + np.arange(counts_I.sum())
        )
        sizes_I2 = self._images.image_sizes[self._positions].astype(np.int64)
        return FlatRecords(sizes_I2, counts_I, boxes_N4, labels_N, ignore_N)

    def _objects(self, places: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes, class positions and which are ignored, of objects given by their places in `starts`."""
        rows = places if self._rows is None else self._rows[places]
        labels_N = self._labels_M[rows].astype(np.int64)
        return (
            self._boxes_M4[rows],
            labels_N if self._label_of is None else self._label_of[labels_N],
            self._ignore_M[rows],
        )

    def _record(self, position: int) -> Record:
        images = self._images
        boxes_N4, labels_N, ignore_N = self._objects(slice(*self._starts[position : position + 2].tolist()))
        return Record(
            path=images.path(position),
            width=images.sizes[2 * position],
            height=images.sizes[2 * position + 1],
            boxes_N4=boxes_N4,
            labels_N=labels_N,
            ignore_N=ignore_N,
            image_id=images.ids[position],
            source=images.source(position),
        )


@dataclass(frozen=True)
class FlatRecords:
    """A few records one after another.

    Attributes:
        sizes_I2: (width, height) of each image, int64.
        counts_I: objects of each image, int64.
        boxes_N4, labels_N, ignore_N: of all their objects, see `Record`.
    """

    sizes_I2: np.ndarray
    counts_I: np.ndarray
    boxes_N4: np.ndarray
    labels_N: np.ndarray
    ignore_N: np.ndarray

    @staticmethod
    def of(records: Sequence[Record]) -> FlatRecords:
        """The columns of records that are objects."""
        return FlatRecords(
            sizes_I2=np.array([(record.width, record.height) for record in records], np.int64).reshape(-1, 2),
            counts_I=np.array([len(record.labels_N) for record in records], np.int64),
            boxes_N4=np.concatenate([np.empty((0, 4)), *(np.reshape(record.boxes_N4, (-1, 4)) for record in records)]),
            labels_N=np.concatenate([np.empty(0, np.int64), *(record.labels_N for record in records)]),
            ignore_N=np.concatenate([np.empty(0, bool), *(record.ignore_N for record in records)]),
        )

    @property
    def image_of_each(self) -> np.ndarray:
        """The position of each object's image, int64."""
        return np.repeat(np.arange(len(self.counts_I)), self.counts_I)


def in_columns(records: Sequence[Record], together: int = 2**14) -> Iterator[FlatRecords]:
    """All records in their order, so many `together`, without an object for each where they are kept in columns."""
    for first in range(0, len(records), together):
        part = records[first : first + together]
        yield part.columns() if isinstance(part, RecordColumns) else FlatRecords.of(part)


def label_counts(records: Sequence[Record], classes: int) -> np.ndarray:
    """How many objects of each class count, those that are ignored left out, (K,) int64."""
    counts_K = np.zeros(classes, np.int64)
    for part in in_columns(records):
        counts_K += np.bincount(part.labels_N[~part.ignore_N], minlength=classes)
    return counts_K


def paths_of(records: Sequence[Record]) -> Iterator[str]:
    """The path of each image, as text."""
    return records.paths() if isinstance(records, RecordTable) else (str(record.path) for record in records)


def at(records: Sequence[Record], positions: np.ndarray) -> Sequence[Record]:
    """The records at these positions."""
    return records.take(positions) if isinstance(records, RecordColumns) else [records[i] for i in positions.tolist()]


def take(records: Sequence[Record], keep: np.ndarray) -> Sequence[Record]:
    """The records that are marked, (n,) bool."""
    return at(records, np.flatnonzero(keep))


def relabelled(records: Sequence[Record], labels: np.ndarray) -> Sequence[Record]:
    """The same records with other class positions, given for each label, int64."""
    if isinstance(records, RecordColumns):
        return records.relabelled(labels)
    return [replace(record, labels_N=labels[record.labels_N]) for record in records]

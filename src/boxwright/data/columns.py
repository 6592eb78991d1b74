"""Images and objects in columns: two million images with thirty million boxes take two gigabytes, and not twenty."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import overload

import numpy as np

from boxwright.data.records import Record
from boxwright.files import name_on_disk


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
    ids: list[int | str]
    moved: dict[int, Path]
    sizes: array[int] = field(default_factory=lambda: array("i"))

    def path(self, position: int) -> Path:
        """The file of an image."""
        return self.moved.get(position) or Path(self.folder, name_on_disk(self.names[position]))

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
            image_A: position of each annotation's image.
            good_A: which to keep.
            boxes: of all annotations, four numbers each.
            label_A: class positions.
            ignore: 1 where ignored.
        """
        boxes_A4 = np.frombuffer(boxes, np.float64).reshape(-1, 4) if boxes else np.empty((0, 4))
        ignore_A = np.frombuffer(ignore, np.bool_) if ignore else np.empty(0, bool)
        starts = np.concatenate([[0], np.cumsum(np.bincount(image_A[good_A], minlength=images))]).astype(np.int64)
        if good_A.all() and (image_A[1:] >= image_A[:-1]).all():
            return ObjectColumns(starts, boxes_A4, label_A, ignore_A)
        rows = np.flatnonzero(good_A)
        rows = rows[np.argsort(image_A[rows], kind="stable")]
        return ObjectColumns(starts, boxes_A4[rows], label_A[rows], ignore_A[rows], rows)

    @property
    def image_of_each(self) -> np.ndarray:
        """The position of each object's image, (M,) int32."""
        return np.repeat(np.arange(len(self.starts) - 1, dtype=np.int32), np.diff(self.starts))

    def kept(self, keep_M: np.ndarray) -> ObjectColumns:
        """The objects that are marked."""
        if keep_M.all():
            return self
        starts = np.concatenate([[0], np.cumsum(keep_M)])[self.starts]
        rows = np.flatnonzero(keep_M) if self.rows_M is None else self.rows_M[keep_M]
        return ObjectColumns(starts, self.boxes_M4[keep_M], self.labels_M[keep_M], self.ignore_M[keep_M], rows)


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

    def relabelled(self, labels: np.ndarray) -> RecordColumns:
        """The same records with other class positions, given for each label, int64."""
        raise NotImplementedError


class RecordTable(RecordColumns):
    """Records in columns; each `Record` is made when it is asked for.

    Args:
        images: of a file.
        objects: of these images.
        positions: of the images that it holds, in order, int64; by default all.
        labels: the class position for each label of `objects`; by default itself.
    """

    def __init__(
        self,
        images: ImageColumns,
        objects: ObjectColumns,
        positions: np.ndarray | None = None,
        labels: np.ndarray | None = None,
    ) -> None:
        self._images, self._objects, self._labels = images, objects, labels
        self._positions = np.arange(len(images.names)) if positions is None else positions

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
        return RecordTable(self._images, self._objects, self._positions[indices], self._labels)

    def relabelled(self, labels: np.ndarray) -> RecordTable:
        """The same records with other class positions, given for each label, int64."""
        before = self._labels
        return RecordTable(self._images, self._objects, self._positions, labels if before is None else labels[before])

    def _record(self, position: int) -> Record:
        images, objects = self._images, self._objects
        own = slice(objects.starts[position], objects.starts[position + 1])
        labels_N = objects.labels_M[own].astype(np.int64)
        return Record(
            path=images.path(position),
            width=images.sizes[2 * position],
            height=images.sizes[2 * position + 1],
            boxes_N4=objects.boxes_M4[own],
            labels_N=labels_N if self._labels is None else self._labels[labels_N],
            ignore_N=objects.ignore_M[own],
            image_id=images.ids[position],
            source=images.source(position),
        )


def take(records: Sequence[Record], keep: np.ndarray) -> Sequence[Record]:
    """The records that are marked, (n,) bool."""
    if isinstance(records, RecordColumns):
        return records.take(np.flatnonzero(keep))
    return [record for record, kept in zip(records, keep, strict=True) if kept]


def relabelled(records: Sequence[Record], labels: np.ndarray) -> Sequence[Record]:
    """The same records with other class positions, given for each label, int64."""
    if isinstance(records, RecordColumns):
        return records.relabelled(labels)
    return [replace(record, labels_N=labels[record.labels_N]) for record in records]

"""The images and objects of shards: as records, each read when it is asked for, and as a parsed data set."""

from __future__ import annotations

import hashlib
import json
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import overload

import numpy as np

from boxwright.data.columns import FlatRecords, ImageColumns, ObjectColumns, RecordColumns, label_counts
from boxwright.data.image_table import ImageTable
from boxwright.data.parsed import ParsedDataset
from boxwright.data.records import Dataset, Record
from boxwright.data.shards.fetch import ShardFiles
from boxwright.data.shards.index import SplitIndex, read_index
from boxwright.data.shards.storage import damaged
from boxwright.files import PackedFile


class ShardArchive:
    """The image files of a split by their position; threads can share it, and it can be pickled.

    Args:
        place: the folder or URL of the data set.
        index: the split.
        files: reads its shards.
    """

    def __init__(self, place: Path | str, index: SplitIndex, files: ShardFiles) -> None:
        self.place, self.index, self.files = place, index, files

    @property
    def checksum(self) -> str:
        """Of images and annotations."""
        return self.index.checksum

    def __reduce__(self) -> tuple[object, ...]:
        return _reopen, (self.place, self.index.name)

    def read_member(self, number: int) -> bytes:
        """The bytes of an image file.

        Raises:
            UserError: the shard is missing, cut off, damaged or of another data set, or can't be read.
        """
        (first, length, checksum), shard = self.index.columns["places"].rows(number, number + 1)[0], self.shard(number)
        data = self.files.read(shard, int(first), int(length))
        if len(data) == length and zlib.crc32(data) == checksum:
            return data
        self.files.forget(shard)  # a local copy may be what is damaged
        data = self.files.read(shard, int(first), int(length))
        if len(data) < length:
            raise damaged(f"{self.place}/{shard}", f"is cut off: it ends before byte {first + length:,}")
        if zlib.crc32(data) != checksum:
            where = f"its bytes from {first:,} on have another checksum than in the index"
            raise damaged(f"{self.place}/{shard}", f"is damaged, or belongs to another data set: {where}")
        return data

    def shard(self, number: int) -> str:
        """The name of the shard in which an image lies."""
        return self.index.shards[self.index.shard_of(number)].file

    def file(self, number: int, name: str) -> PackedFile:
        """An image as a file, of this name."""
        return PackedFile(self, number, f"{self.place}/{self.shard(number)}/{name}", name)

    def source(self, number: int, image_id: int | str, name: str) -> str:
        """Shard and record of an image, for error messages."""
        return f"{self.place}/{self.shard(number)}, image {image_id} ({name})"

    def text(self, number: int) -> tuple[int | str, str]:
        """Image id and file name."""
        columns = self.index.columns
        first, last = columns["text_starts"].rows(number, number + 2).tolist()
        image_id, name = json.loads(columns["text"].rows(first, last).tobytes())
        return image_id, name


def _reopen(place: Path | str, split: str) -> ShardArchive:
    return _archives(place)[split]


@dataclass(frozen=True)
class ShardRecords(RecordColumns):
    """Records in shards.

    Attributes:
        archive: the images.
        positions: which of them these are, in order, int64.
        labels: the class position for each label of the index; None for itself.
    """

    archive: ShardArchive
    positions: np.ndarray
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.positions)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> ShardRecords: ...
    def __getitem__(self, index: int | slice) -> Record | ShardRecords:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        return self._record(int(self.positions[index]))

    def __iter__(self) -> Iterator[Record]:
        return map(self._record, self.positions.tolist())

    def __repr__(self) -> str:
        return f"<{len(self)} records of {self.archive.place}>"

    def files(self) -> Iterator[PackedFile]:
        """Each image, without its objects."""
        return (self.archive.file(number, self.archive.text(number)[1]) for number in self.positions.tolist())

    def columns(self) -> FlatRecords:
        """All of it as arrays."""
        columns, positions = self.archive.index.columns, self.positions.tolist()
        spans = [columns["starts"].rows(position, position + 2).tolist() for position in positions]
        labels_N = columns["labels"].gather(spans).astype(np.int64)
        return FlatRecords(
            sizes_I2=columns["sizes"].gather([(position, position + 1) for position in positions]).astype(np.int64),
            counts_I=np.array([last - first for first, last in spans], np.int64),
            boxes_N4=columns["boxes"].gather(spans),
            labels_N=labels_N if self.labels is None else self.labels[labels_N],
            ignore_N=columns["ignore"].gather(spans),
        )

    def take(self, indices: np.ndarray) -> ShardRecords:
        """The records at these places."""
        return ShardRecords(self.archive, self.positions[indices], self.labels)

    def relabelled(self, labels: np.ndarray) -> ShardRecords:
        """The same records with other class positions, given for each label, int64."""
        before = self.labels
        return ShardRecords(self.archive, self.positions, labels if before is None else labels[before])

    @cached_property
    def checksum(self) -> str:
        """Of images and annotations."""
        digest = hashlib.sha256(self.archive.index.checksum.encode())
        digest.update(np.ascontiguousarray(self.positions).tobytes())
        digest.update(b"" if self.labels is None else np.ascontiguousarray(self.labels, np.int64).tobytes())
        return digest.hexdigest()[:16]

    def checksums(self) -> np.ndarray:
        """A number of each image, the same for the same bytes, (n,) int64."""
        places = self.archive.index.columns["places"].all()[self.positions]
        return places[:, 1] << 32 | places[:, 2]

    def label_counts(self) -> np.ndarray:
        """How many objects that are not ignored each class has, (K,)."""
        columns = self.archive.index.columns
        chosen_I = np.zeros(len(self.archive.index), bool)
        chosen_I[self.positions] = True
        chosen_M = np.repeat(chosen_I, np.diff(columns["starts"].all()))
        counts_K, first = np.zeros(0, np.int64), 0
        for labels_N, ignore_N in zip(columns["labels"].blocks(), columns["ignore"].blocks(), strict=True):
            counted_N = chosen_M[first : first + len(labels_N)] & ~ignore_N
            block_K = np.bincount(labels_N[counted_N], minlength=len(counts_K))
            block_K[: len(counts_K)] += counts_K
            counts_K, first = block_K, first + len(labels_N)
        if self.labels is None:
            return counts_K
        return np.bincount(self.labels[: len(counts_K)], counts_K, len(self.labels)).astype(np.int64)

    def _record(self, position: int) -> Record:
        archive, columns = self.archive, self.archive.index.columns
        image_id, name = archive.text(position)
        width, height = columns["sizes"].rows(position, position + 1)[0].tolist()
        own = columns["starts"].rows(position, position + 2).tolist()
        labels_N = columns["labels"].rows(*own).astype(np.int64)
        return Record(
            path=archive.file(position, name),
            width=width,
            height=height,
            boxes_N4=columns["boxes"].rows(*own),
            labels_N=labels_N if self.labels is None else self.labels[labels_N],
            ignore_N=columns["ignore"].rows(*own),
            image_id=image_id,
            source=archive.source(position, image_id, name),
        )


def count_labels(records: Sequence[Record], classes: int) -> np.ndarray:
    """How many objects of each class count, those that are ignored left out, (K,) int64; of shards by their columns."""
    if not isinstance(records, ShardRecords):
        return label_counts(records, classes)
    counts_K = records.label_counts()
    return np.pad(counts_K, (0, classes - len(counts_K)))


@dataclass
class _PackedColumns(ImageColumns):
    """Columns in memory, of images in shards."""

    archive: ShardArchive | None = None

    def path(self, position: int) -> PackedFile:  # type: ignore[override]
        """The file of an image."""
        assert self.archive
        return self.archive.file(position, self.names[position])

    def paths(self) -> Iterator[str]:
        """All of them as text."""
        return (str(self.path(position)) for position in range(len(self.names)))

    def source(self, position: int) -> str:
        """Shard and record, for error messages."""
        assert self.archive
        return self.archive.source(position, self.ids[position], self.names[position])


def read(place: Path | str) -> Dataset:
    """The data set in shards at a folder or URL; nothing but the index is read.

    Raises:
        UserError: see `read_index`.
    """
    index = read_index(place)
    splits = {
        name: ShardRecords(ShardArchive(place, split, ShardFiles(index.storage, split.shards)), np.arange(len(split)))
        for name, split in index.splits.items()
    }
    split_ids = {name: split.category_ids for name, split in index.splits.items() if split.category_ids is not None}
    return Dataset(place, "shards", index.names, dict(splits), index.category_ids, split_ids)


def parse(place: Path | str) -> ParsedDataset:
    """The same as a parsed data set, with all columns in memory.

    Raises:
        UserError: see `read_index`.
    """
    dataset = read(place)
    parsed = ParsedDataset(place, "shards", dataset.names, {}, dataset.category_ids, dataset.split_ids)
    for split, archive in _archives_of(dataset).items():
        parsed.splits[split] = _table(archive)
    return parsed


def _archives(place: Path | str) -> dict[str, ShardArchive]:
    return _archives_of(read(place))


def _archives_of(dataset: Dataset) -> dict[str, ShardArchive]:
    records = {split: records for split, records in dataset.splits.items() if isinstance(records, ShardRecords)}
    return {split: each.archive for split, each in records.items()}


def _table(archive: ShardArchive) -> ImageTable:
    columns = {name: column.all() for name, column in archive.index.columns.items()}
    ends, text = columns["text_starts"].tolist(), columns["text"].tobytes()
    texts = [json.loads(text[first:last]) for first, last in pairwise(ends)]
    images = _PackedColumns("", Path(), [name for _, name in texts], [image_id for image_id, _ in texts], {})
    images.archive, images.sizes = archive, array("i", columns["sizes"].astype(np.intc).tobytes())
    objects = ObjectColumns(columns["starts"], columns["boxes"], columns["labels"], columns["ignore"])
    numbers = np.arange(len(objects.labels_M)) - objects.starts[objects.image_of_each] + 1
    return ImageTable(images, objects, numbers.tolist())

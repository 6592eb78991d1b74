"""The index of a data set in shards: `shards.json`, and columns of numbers that say of each image what it is and where.

    shards.json              format, classes, splits with their shards and columns, and a checksum of all this
    train-00000.tar ...      the images and annotations, in WebDataset's layout: 000000000.jpg, 000000000.json, ...
    index/train/COLUMN.npy   `COLUMNS`, I images with M objects

Any image, with its objects, is read by position, without reading what lies before it: the column `places` has the bytes
in its shard. The annotations in the shards are those of the columns, for other programs; boxwright reads the columns.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from boxwright.config import UserError
from boxwright.data.shards.columns import Column
from boxwright.data.shards.storage import INDEX, LocalFolder, RemoteFolder, damaged, open_storage
from boxwright.files import default_folder, write_whole

FORMAT = "boxwright-shards-1"
COLUMNS: dict[str, tuple[Any, tuple[int, ...]]] = {  # dtype and shape of a row
    "places": (np.int64, (3,)),  # (I, 3): first byte in the shard, bytes, CRC-32 of them
    "sizes": (np.int32, (2,)),  # (I, 2): width, height in pixels
    "starts": (np.int64, ()),  # (I + 1,): first object, and at last their number
    "boxes": (np.float64, (4,)),  # (M, 4): xyxy in pixels, with area inside the image
    "labels": (np.int32, ()),  # (M,): class positions
    "ignore": (np.bool_, ()),  # (M,): see `Record`
    "text_starts": (np.int64, ()),  # (I + 1,): first byte of `text`
    "text": (np.uint8, ()),  # of each image a JSON list: image id, file name
}


@dataclass(frozen=True)
class Shard:
    """One tar file: its name, bytes, and number of images."""

    file: str
    bytes: int
    images: int


@dataclass(frozen=True)
class SplitIndex:
    """The images of a split, in the order of their shards.

    Attributes:
        name: of the split.
        shards: in order.
        columns: by name, of `COLUMNS`.
        category_ids: see `Dataset`; None where they are those of the data set.
        checksum: of images and annotations.
    """

    name: str
    shards: tuple[Shard, ...]
    columns: Mapping[str, Column]
    category_ids: tuple[int, ...] | None
    checksum: str

    def __len__(self) -> int:
        return len(self.columns["sizes"])

    @cached_property
    def ends(self) -> np.ndarray:
        """Position behind the last image of each shard, int64."""
        return np.cumsum([shard.images for shard in self.shards])

    def shard_of(self, position: int) -> int:
        """The number of the shard in which an image lies."""
        return int(np.searchsorted(self.ends, position, side="right"))


@dataclass(frozen=True)
class ShardIndex:
    """A data set in shards, whose index is read and whole.

    Attributes:
        storage: where it lies.
        names: the classes.
        category_ids: see `Dataset`.
        splits: by name.
    """

    storage: LocalFolder | RemoteFolder
    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    splits: dict[str, SplitIndex] = field(default_factory=dict)


def is_sharded(place: Path | str) -> bool:
    """Whether a folder, or a URL, holds a data set in shards.

    Raises:
        UserError: the URL can't be read.
    """
    return (place / INDEX).is_file() if isinstance(place, Path) else open_storage(place).exists(INDEX)


def read_index(place: Path | str) -> ShardIndex:
    """The index of the shards in a folder or at a URL. That of a URL is copied into the folder of caches, once.

    Raises:
        UserError: a part is missing, cut off or of another data set, or can't be read.
    """
    storage = open_storage(place)
    about = _read_about(storage)
    index = ShardIndex(storage, tuple(about["names"]), tuple(about["category_ids"]))
    for name, split in about["splits"].items():
        shards = tuple(Shard(*shard) for shard in split["shards"])
        columns = {column: _open_column(storage, split["columns"][column], about["checksum"]) for column in COLUMNS}
        ids = split["category_ids"]
        checksum = hashlib.sha256(json.dumps([split["columns"], list(index.names)]).encode()).hexdigest()[:16]
        index.splits[name] = SplitIndex(name, shards, columns, None if ids is None else tuple(ids), checksum)
    _require_shards(index)
    return index


def write_about(file: Path, about: dict[str, Any]) -> None:
    """Write shards.json, with its checksum."""
    text = json.dumps({**about, "checksum": _checksum(about)}, indent=1)
    write_whole(file, lambda temporary: temporary.write_text(text + "\n"))


def safe_name(split: str) -> str:
    """A split's name as a part of file names."""
    return re.sub(r"[^\w.-]", "_", split, flags=re.ASCII)


def crc32_of(file: Path) -> int:
    """CRC-32 of a file."""
    checksum = 0
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _read_about(storage: LocalFolder | RemoteFolder) -> dict[str, Any]:
    place = f"{storage.place}/{INDEX}"
    try:
        about = json.loads(storage.read(INDEX))
        kind = about["format"]
    except (ValueError, TypeError, KeyError) as error:
        raise damaged(place, "is no index of shards, or is cut off") from error
    if kind != FORMAT:
        raise UserError(f"{place} is of the format {kind!r:.40}, and this version reads {FORMAT}; update boxwright.")
    if about.get("checksum") != _checksum(about):
        raise damaged(place, "is damaged: it has another checksum than when it was written")
    return about


def _checksum(about: dict[str, Any]) -> str:
    rest = {name: value for name, value in about.items() if name != "checksum"}
    return f"{zlib.crc32(json.dumps(rest, sort_keys=True).encode()):08x}"


def _open_column(storage: LocalFolder | RemoteFolder, stored: list[Any], key: str) -> Column:
    """A column, compared with its checksum."""
    name, _, checksum = stored
    place = f"{storage.place}/{name}"
    try:
        if isinstance(storage, LocalFolder):
            file = storage.place / name
        else:
            file = cache_folder(str(storage.place)) / key / name
            if not file.is_file() or crc32_of(file) != checksum:
                content = storage.read(name)
                write_whole(file, lambda temporary: temporary.write_bytes(content))
        if crc32_of(file) != checksum:
            raise damaged(place, "is cut off, or belongs to another data set")
        return Column(file)
    except FileNotFoundError as error:
        raise damaged(place, "is missing") from error
    except ValueError as error:
        raise damaged(place, f"can't be read: {error}") from error
    except OSError as error:
        raise UserError(f"{place} can't be read: {error.strerror or error}; check its permissions.") from error


def cache_folder(place: str) -> Path:
    """Where copies of files of a URL are kept."""
    return default_folder() / "shards" / hashlib.sha256(place.encode()).hexdigest()[:16]


def _require_shards(index: ShardIndex) -> None:
    """Raise `UserError` if a shard is missing or has another size; where shards can't be listed, reading shows it."""
    sizes = index.storage.sizes()
    if sizes is None:
        return
    for shard in (shard for split in index.splits.values() for shard in split.shards):
        place = f"{index.storage.place}/{shard.file}"
        if shard.file not in sizes:
            raise damaged(place, "is missing")
        if sizes[shard.file] != shard.bytes:
            what = "is cut off" if sizes[shard.file] < shard.bytes else "belongs to another data set"
            raise damaged(place, f"{what}: it has {sizes[shard.file]:,} bytes, and the index counts {shard.bytes:,}")

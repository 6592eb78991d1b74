"""A cache that is empty when a run begins: each image is decoded when it is first used, and kept.

It is a folder beside the complete caches, named by the same key with `-growing` behind it:

    cache.json      version, mode, side, number of images, checksum
    NAME.images     the images that one process added, one after another, each as in a complete cache
    NAME.rows       where each of them lies: 40 bytes an image, see `ROW`

Each process writes files of its own, an image before its row, and reads those of all others, also while they grow. So
no lock is needed, and what a killed process leaves half-written has no row, or one that is cut short or has another
checksum: such an image is decoded again, and so is one that was damaged later. Nothing is ever changed in place.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from boxwright.config import UserError, require
from boxwright.console import make_console
from boxwright.data.cache_build import FittedImage, crc32c, fit_image
from boxwright.data.cache_reading import Cache, decode, user_errors, with_targets
from boxwright.data.columns import FlatRecords
from boxwright.data.records import Record
from boxwright.files import PackedFile, write_whole
from boxwright.types import Batch

VERSION = 1
ROW = np.dtype(
    [("position", "<i8"), ("offset", "<i8"), ("bytes", "<i4"), ("height", "<i4"), ("width", "<i4"), ("data", "<u4"),
     ("source", "<u4"), ("row", "<u4")]
)  # fmt: skip
# position in the data set; where the image lies in NAME.images; its size on the canvas; CRC-32C of its bytes, of the
# image file, and of the row before this number
RESERVE = 2**30  # bytes of the disk that are left free: checkpoints must be written, too


@dataclass(frozen=True)
class FileStates:
    """What the file system says of image files: bytes and time of change in ns, (n,) int64; 0 of those in archives."""

    sizes_B: np.ndarray
    times_B: np.ndarray

    @property
    def checksum(self) -> str:
        """CRC-32C of the sizes."""
        return f"{crc32c(self.sizes_B):08x}"

    def require_unchanged(self, record: Record, position: int) -> None:
        """Raise `UserError` if a file is not the one that was there when the run began."""
        if isinstance(record.path, PackedFile):  # its archive compares checksums
            return
        try:
            stat = record.path.stat()
        except OSError as error:
            raise UserError(f"{record.path}: cannot be read ({error.strerror}).") from error
        same = (stat.st_size, stat.st_mtime_ns) == (self.sizes_B[position], self.times_B[position])
        require(same, f"{record.path} has changed since the run began; put back what was there.")


class GrowingCache(Cache):
    """A cache that grows as it is used.

    Args:
        folder: as `create` makes it.
        side, mode: of the images, see `Cache`.
        records: the images.
        files: their state as the run begins.
    """

    def __init__(self, folder: Path, side: int, mode: str, records: Sequence[Record], files: FileStates) -> None:
        self.folder, self.side, self.mode = folder, side, mode
        self._records, self._files = records, files
        self._shelves: list[_Shelf] = []
        self._shelf_B = np.full(len(records), -1, np.int32)
        self._rows_B = np.zeros(len(records), ROW)
        self._unread_B = np.ones(len(records), bool)  # not compared with their checksums yet
        self._damaged: set[tuple[int, int]] = set()  # shelf and offset
        self._own: _OwnShelf | None = None
        self._full = False
        self._lock = threading.Lock()
        with self._lock:
            self._look_for_more()

    def __len__(self) -> int:
        return len(self._records)

    @property
    def held(self) -> int:
        """How many images it holds already."""
        return int((self._shelf_B >= 0).sum())

    @property
    def checksums(self) -> dict[str, str]:
        """Those of all files' sizes: their content is not read before it is used."""
        return {"file sizes": self._files.checksum}

    def batch(self, indices: Sequence[int] | Tensor, *, pin: bool = False) -> Batch:
        """See `Cache`."""
        index_B = torch.as_tensor(indices, dtype=torch.int64)
        positions, images_BHWC = index_B.tolist(), self._canvas(len(index_B), pin)
        if (self._shelf_B[positions] < 0).any():
            with self._lock:
                self._look_for_more()
        sizes = list(self._pool.map(self._put, positions, images_BHWC))
        columns = FlatRecords.of([self._records[position] for position in positions])
        return with_targets(images_BHWC, sizes, columns, index_B)

    def _put(self, position: int, out_HWC: Tensor) -> tuple[int, int]:
        """Put an image onto a canvas; returns height and width there."""
        data, size = self._get(position)
        data_C = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        if self.mode == "pixels":
            out_HWC.copy_(data_C.view(out_HWC.shape))
        else:
            decode(data_C, size, out_HWC)
        return size

    def _get(self, position: int) -> tuple[bytes, tuple[int, int]]:
        """An image as it lies in the cache, and (height, width); decoded and kept if it is not there."""
        while (data := self._read(position)) is None and self._shelf_B[position] >= 0:
            self._forget(position)  # another process may have made it again
        if data is not None:
            return data, (int(self._rows_B["height"][position]), int(self._rows_B["width"][position]))
        record = self._records[position]
        self._files.require_unchanged(record, position)
        fitted = fit_image(record, self.side, self.mode)
        if isinstance(fitted, UserError):
            raise UserError(f"{fitted} `boxwright check DATA` finds all such images before a run begins.")
        self._keep(position, fitted)
        return fitted.data, fitted.size

    def _read(self, position: int) -> bytes | None:
        """The bytes of an image; None if it is not there, or damaged."""
        if self._shelf_B[position] < 0:
            return None
        row = self._rows_B[position]
        data = self._shelves[self._shelf_B[position]].read(int(row["offset"]), int(row["bytes"]))
        if len(data) == row["bytes"] and (not self._unread_B[position] or crc32c(data) == row["data"]):
            self._unread_B[position] = False
            return data
        return None

    def _forget(self, position: int) -> None:
        """Forget a damaged image, and look for another copy of it."""
        with self._lock:
            shelf, record = int(self._shelf_B[position]), self._records[position]
            if shelf < 0:  # another thread was faster
                return
            file = self._shelves[shelf].file
            make_console(stderr=True).print(f"{file} is damaged: an image is made again from {record.path}")
            self._damaged.add((shelf, int(self._rows_B["offset"][position])))
            self._shelf_B[position] = -1
            for each in self._shelves:
                each.rewind()
            self._look_for_more()

    def _keep(self, position: int, fitted: FittedImage) -> None:
        """Write an image and its row, unless there is no room."""
        with self._lock:
            if self._full:
                return
            data = fitted.data
            row = np.array([(position, 0, len(data), *fitted.size, crc32c(data), fitted.source, 0)], ROW)
            try:
                if shutil.disk_usage(self.folder).free < RESERVE + len(data):
                    raise OSError(f"less than {RESERVE / 2**30:.0f} GB would be left")
                self._own = self._own or _OwnShelf(self.folder)
                self._own.add(data, row)
            except OSError as error:
                self._full = True
                reason = error.strerror or str(error)
                what = f"the cache {self.folder} grows no more ({reason}): other images are decoded each time"
                make_console(stderr=True).print(what, style="yellow")
                return
            self._look_for_more()

    def _look_for_more(self) -> None:
        """Take up the rows that any process has written since."""
        known = {shelf.file for shelf in self._shelves}
        for file in sorted(self.folder.glob("*.images")):
            if file not in known:
                self._shelves.append(_Shelf(file))
        for number, shelf in enumerate(self._shelves):
            rows = shelf.new_rows()
            rows = rows[self._is_plausible(rows)]
            rows = rows[self._shelf_B[rows["position"]] < 0]
            if self._damaged:
                whole = ((number, int(offset)) not in self._damaged for offset in rows["offset"])
                rows = rows[np.fromiter(whole, bool, len(rows))]
            self._rows_B[rows["position"]] = rows
            self._unread_B[rows["position"]] = True
            self._shelf_B[rows["position"]] = number  # last: other threads read without the lock

    def _is_plausible(self, rows: np.ndarray) -> np.ndarray:
        """Which rows can be those of images of this cache."""
        inside = (rows["position"] >= 0) & (rows["position"] < len(self)) & (rows["offset"] >= 0) & (rows["bytes"] > 0)
        for side in ("height", "width"):
            inside &= (rows[side] > 0) & (rows[side] <= self.side)
        return inside & ((self.mode == "jpeg") | (rows["bytes"] == 3 * self.side**2))


class _Shelf:
    """The images that one process adds, for reading."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._images, self._seen = file.open("rb", buffering=0), 0
        self._lock = threading.Lock()

    def read(self, offset: int, count: int) -> bytes:
        """Bytes of an image; fewer if the file is cut short."""
        with self._lock:
            self._images.seek(offset)
            return self._images.read(count)

    def new_rows(self) -> np.ndarray:
        """Whole rows that were written since the last call, those without damage."""
        file = self.file.with_suffix(".rows")
        try:
            if file.stat().st_size < self._seen + ROW.itemsize:
                return np.empty(0, ROW)
            with file.open("rb") as stream:
                stream.seek(self._seen)
                content = stream.read()
        except FileNotFoundError:
            return np.empty(0, ROW)
        rows = np.frombuffer(content[: len(content) // ROW.itemsize * ROW.itemsize], ROW)
        self._seen += len(rows) * ROW.itemsize
        return rows[np.fromiter((_checksum(row) == row["row"] for row in rows), bool, len(rows))]

    def rewind(self) -> None:
        """Let `new_rows` start again."""
        self._seen = 0


class _OwnShelf:
    """The files that this process writes."""

    def __init__(self, folder: Path) -> None:
        file = folder / f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.images"
        self._images: BinaryIO = file.open("xb", buffering=0)
        self._rows: BinaryIO = file.with_suffix(".rows").open("xb", buffering=0)

    def add(self, data: bytes, row: np.ndarray) -> None:
        """Append an image and then its row, (1,) `ROW`, whose offset and checksum are set here."""
        row["offset"] = self._images.tell()
        row["row"] = _checksum(row[0])
        for stream, content in ((self._images, data), (self._rows, row.tobytes())):
            if stream.write(content) != len(content):  # on a full disk, a part may be written without an error
                raise OSError("the disk is full")


def _checksum(row: np.void) -> int:
    return crc32c(row.tobytes()[: -ROW["row"].itemsize])


def create(folder: Path, side: int, mode: str, images: int) -> None:
    """Make the folder of an empty cache, unless another process has made it."""
    with user_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if not is_whole(folder, side, mode, images):
        about = _about(side, mode, images)
        write_whole(folder / "cache.json", lambda temporary: temporary.write_text(json.dumps(about) + "\n"))


def is_whole(folder: Path, side: int, mode: str, images: int) -> bool:
    """Whether a folder is a growing cache of so many images."""
    try:
        return bool(json.loads((folder / "cache.json").read_text()) == _about(side, mode, images))
    except (OSError, ValueError, RecursionError):
        return False


def _about(side: int, mode: str, images: int) -> dict[str, int | str]:
    return {"version": VERSION, "mode": mode, "side": side, "images": images}

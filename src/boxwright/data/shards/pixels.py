"""Decoded images of shards, fitted to the canvas, in a file that grows while training reads them for the first time.

Two files in the folder of caches, named by a checksum of the split and by the side of the canvas: `.pixels` has a slot
for each of the first images of the split, as many as the limit allows, and holds disk space only where one is written;
`.slots` has (CRC-32C, height, width) of each, written last, zero where there is none. A slot that was not written to
its end has another checksum, and is written again. Processes can share them: they write the same.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
from rich.console import Console

from boxwright.config import UserError
from boxwright.data.cache_build import crc32c
from boxwright.data.shards.fetch import limit_of_cache
from boxwright.data.shards.index import SplitIndex
from boxwright.files import default_folder

_SLOT = np.dtype([("crc32c", np.uint32), ("height", np.uint16), ("width", np.uint16)])


class PixelStore:
    """The decoded images of a split; threads and processes can share it.

    Args:
        index: the split.
        side: of the square canvas, in pixels.
        console: where to say how many images it will keep.

    Raises:
        UserError: the folder of caches can't be written, or its limit is no number of bytes.
    """

    def __init__(self, index: SplitIndex, side: int, console: Console) -> None:
        folder = default_folder() / "shards"
        self._file, self._bytes = folder / f"{index.checksum}-{side}.pixels", 3 * side**2
        self._full = threading.Event()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._pixels, self._slots = _open(self._file), _open(self._file.with_suffix(".slots"))
            taken = os.fstat(self._pixels).st_blocks * 512
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"{folder} can't be written: {reason}; set BOXWRIGHT_CACHE to one that can.") from error
        self.capacity = min(len(index), (limit_of_cache(folder, taken)) // self._bytes)
        self._sizes_N2 = np.zeros((self.capacity, 2), np.uint16)  # (height, width) of each that was verified
        kept = "" if self.capacity == len(index) else "; the others are decoded in each epoch"
        console.print(f"Decoded images of {self.capacity:,} of {len(index):,} are kept in {folder}{kept}")

    def __del__(self) -> None:
        for descriptor in (getattr(self, name, None) for name in ("_pixels", "_slots")):
            if descriptor is not None:
                os.close(descriptor)

    def read(self, number: int, out_SS3: np.ndarray) -> tuple[int, int] | None:
        """Fill a canvas; returns (height, width) of the image on it, None if it is not here."""
        if number >= self.capacity:
            return None
        height, width = self._sizes_N2[number].tolist()
        if height:
            return (height, width) if self._fill(number, out_SS3) else None
        slot = np.frombuffer(os.pread(self._slots, _SLOT.itemsize, number * _SLOT.itemsize), _SLOT)
        if not len(slot) or not slot["height"][0] or not self._fill(number, out_SS3):
            return None
        if crc32c(out_SS3) != slot["crc32c"][0]:
            return None
        size = int(slot["height"][0]), int(slot["width"][0])
        self._sizes_N2[number] = size
        return size

    def _fill(self, number: int, out_SS3: np.ndarray) -> bool:
        """Whether a canvas was read to its end."""
        return os.preadv(self._pixels, [out_SS3.reshape(-1).data], number * self._bytes) == self._bytes

    def write(self, number: int, canvas_SS3: np.ndarray, size: tuple[int, int]) -> None:
        """Keep a canvas, if there is room; a full disk ends the keeping, and nothing else."""
        if number >= self.capacity or self._full.is_set():
            return
        try:
            if os.pwrite(self._pixels, canvas_SS3.reshape(-1).data, number * self._bytes) == self._bytes:
                slot = np.array([(crc32c(canvas_SS3), *size)], _SLOT)
                os.pwrite(self._slots, slot.tobytes(), number * _SLOT.itemsize)
        except OSError:
            self._full.set()


def _open(file: Path) -> int:
    return os.open(file, os.O_RDWR | os.O_CREAT, 0o644)

"""Columns of an index: .npy files of which rows are read when they are asked for, so that no set is too large."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

ROWS = 2**18  # read at once where all are


class Column:
    """A .npy file, open for reading; threads can share it.

    Args:
        file: an array in C's order.

    Raises:
        ValueError: it is no such file, or cut off.
    """

    def __init__(self, file: Path) -> None:
        with file.open("rb") as stream:
            if np.lib.format.read_magic(stream) != (1, 0):
                raise ValueError("it is of another version of NumPy's format")
            self.shape, fortran, self.dtype = np.lib.format.read_array_header_1_0(stream)
            self._start = stream.tell()
        self._row = self.dtype.itemsize * int(np.prod(self.shape[1:]))
        if fortran or file.stat().st_size != self._start + self._row * len(self):
            raise ValueError("it is cut off")
        self._descriptor = os.open(file, os.O_RDONLY)

    def __len__(self) -> int:
        return self.shape[0]

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def rows(self, first: int, last: int) -> np.ndarray:
        """Rows from `first` up to, but without, `last`."""
        data = os.pread(self._descriptor, (last - first) * self._row, self._start + first * self._row)
        return np.frombuffer(data, self.dtype).reshape(last - first, *self.shape[1:])

    def gather(self, spans: Sequence[Sequence[int]]) -> np.ndarray:
        """The rows of each span, see `rows`, one after another."""
        data = b"".join(
            os.pread(self._descriptor, (last - first) * self._row, self._start + first * self._row)
            for first, last in spans
        )
        return np.frombuffer(data, self.dtype).reshape(-1, *self.shape[1:])

    def blocks(self) -> Iterator[np.ndarray]:
        """All rows, `ROWS` at a time."""
        return (self.rows(first, min(first + ROWS, len(self))) for first in range(0, len(self), ROWS))

    def all(self) -> np.ndarray:
        """All rows, in memory."""
        return np.concatenate([np.empty((0, *self.shape[1:]), self.dtype), *self.blocks()])


class ColumnWriter:
    """A .npy file that is written row by row; `close` writes how many there are.

    Args:
        file: to write.
        dtype: of its elements.
        row: the shape of a row.
    """

    def __init__(self, file: Path, dtype: np.typing.DTypeLike, row: tuple[int, ...] = ()) -> None:
        self._stream, self._dtype, self._row, self._count = file.open("wb"), np.dtype(dtype), row, 0
        self._write_header()

    def append(self, rows: object) -> None:
        """Write rows behind the others."""
        array = np.ascontiguousarray(np.asarray(rows, self._dtype).reshape(-1, *self._row))
        self._stream.write(array.tobytes())
        self._count += len(array)

    def close(self) -> None:
        """Complete the file."""
        self._stream.seek(0)
        self._write_header()
        self._stream.close()

    def _write_header(self) -> None:
        """NumPy leaves room in the header for the first axis to grow, so that its length stays the same."""
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self._count, *self._row),
        }
        np.lib.format.write_array_header_1_0(self._stream, header)

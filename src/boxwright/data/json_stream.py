"""Read a large JSON file value by value, so that it is never in memory as a whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

_BLOCK = 2**20  # characters read at once
_SPACE = " \t\n\r"
_AFTER = frozenset(" \t\n\r,:]}")  # what may follow a value


class JsonStream:
    """The members of the object that a JSON file holds.

    A member's value must be taken, by `value` or `items`, before the next one is asked for. What is not as expected is
    a `ValueError` without a place in the file: `json.loads` of the whole text then says more.

    Args:
        file: in UTF-8.
    """

    def __init__(self, file: Path) -> None:
        self._stream = file.open(encoding="utf-8-sig", newline="")
        self._text, self._at = "", 0
        self._decode = json.JSONDecoder().raw_decode

    def __enter__(self) -> JsonStream:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stream.close()

    def keys(self) -> Iterator[str]:
        """The key of each member of the object, which must be all that the file holds."""
        yield from (self._key() for _ in self._elements("{", "}"))
        if self._peek():
            raise ValueError("something follows")

    def items(self) -> Iterator[Any]:
        """The elements of the array that comes next."""
        yield from (self.value() for _ in self._elements("[", "]"))

    def value(self) -> Any:
        """The value that comes next, whole."""
        self._peek()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except ValueError:
                if not self._read():
                    raise
                continue
            if self._text[end : end + 1] in _AFTER or not self._read():  # else a number may go on: 2 and .5
                self._at = end
                return value

    def is_array(self) -> bool:
        """Whether an array comes next."""
        return self._peek() == "["

    def _key(self) -> str:
        key = self.value()
        self._take(":")
        return str(key)

    def _elements(self, opening: str, closing: str) -> Iterator[None]:
        self._take(opening)
        if self._peek() == closing:
            self._at += 1
            return
        while True:
            yield
            if self._peek() == closing:
                self._at += 1
                return
            self._take(",")

    def _take(self, character: str) -> None:
        if self._peek() != character:
            raise ValueError(f"{character} is missing")
        self._at += 1

    def _peek(self) -> str:
        """The next character that is no space, which is passed over; empty at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read():
                return ""

    def _read(self) -> bool:
        """Append a block, at least as long as what is waiting, and forget what was taken; False at the end."""
        waiting = self._text[self._at :]
        block = self._stream.read(max(_BLOCK, len(waiting)))
        if block:
            self._text, self._at = waiting + block, 0
        return bool(block)

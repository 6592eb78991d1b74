"""Ids of images, annotations and categories in a column."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import repeat
from typing import Any

import numpy as np


class IdColumn:
    """Ids one after another. All but the few that are no integers take 4 bytes each, or 8 if one is large."""

    def __init__(self) -> None:
        self.numbers = array("i")
        self.others: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, row: int) -> Any:
        return self.others[row] if row in self.others else self.numbers[row]

    def __iter__(self) -> Iterator[Any]:
        return (self[row] for row in range(len(self)))

    def append(self, id_: Any) -> None:
        """Add an id of any type."""
        if type(id_) is not int or abs(id_) >= 2**63:
            self.others[len(self.numbers)] = id_
            id_ = 0
        try:
            self.numbers.append(id_)
        except OverflowError:
            self.numbers = array("q", self.numbers)
            self.numbers.append(id_)

    def keep_only(self, rows: Iterable[int]) -> None:
        """Forget all but these."""
        self.others = {row: self[row] for row in rows}
        self.numbers = array("i")

    def positions_in(self, positions: Mapping[Any, int]) -> np.ndarray:
        """The position of each id, int32; -1 where it has none. An id may be a number here and its text there."""
        numbers = Counter(number(id_) for id_ in positions) if any(type(id_) is not int for id_ in positions) else {}
        own = {number(id_): position for id_, position in positions.items() if numbers.get(number(id_)) == 1}
        known = {**own, **positions} if own else positions
        found = np.fromiter(map(known.get, self.numbers, repeat(-1)), np.int32, len(self))
        for row, id_ in self.others.items():
            found[row] = known.get(id_, known.get(number(id_), -1)) if hashable(id_) else -1
        return found

    def repeated(self) -> Iterator[tuple[Any, int]]:
        """Each id that occurs several times, and how often."""
        ordered = np.sort(np.delete(np.array(self.numbers), list(self.others)))
        again = ordered[1:][ordered[1:] == ordered[:-1]]
        for id_, more in zip(*map(np.ndarray.tolist, np.unique(again, return_counts=True)), strict=True):
            yield id_, more + 1
        counts = Counter(map(str, self.others.values()))
        yield from ((id_, count) for id_, count in counts.items() if count > 1)


def number(id_: Any) -> Any:
    """An id as an integer if it is an integral number or the text of one; otherwise as it is."""
    if isinstance(id_, str):
        return int(id_) if re.fullmatch(r"\s*-?[0-9]{1,18}\s*", id_) else id_
    return int(id_) if isinstance(id_, float) and id_.is_integer() else id_


def hashable(value: object) -> bool:
    """Whether a JSON value can be an id at all."""
    return not isinstance(value, (list, dict))

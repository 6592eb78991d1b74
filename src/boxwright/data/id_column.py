"""Ids of images, annotations and categories in a column."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

_TOGETHER = 2**19  # ids that are looked up at once


class IdColumn:
    """Ids one after another. All but the few that are no integers take 4 bytes each, or 8 if one is large."""

    def __init__(self, ids: Iterable[Any] = ()) -> None:
        self.numbers = array("i")
        self.others: dict[int, Any] = {}
        for id_ in ids:
            self.append(id_)

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

    def positions_in(self, ids: IdColumn) -> np.ndarray:
        """The row of each id in another column, int32; -1 where it has none.

        An id may be a number here and its text there. The other column has none twice.
        """
        found = self._rows_of_numbers(ids)
        if not ids.others and not self.others:
            return found
        positions = {id_: row for row, id_ in enumerate(ids)}
        counts = Counter(map(number, positions))
        own = {number(id_): row for id_, row in positions.items() if counts[number(id_)] == 1}
        known = {**own, **positions}
        if ids.others:
            found = np.array([known.get(id_, -1) for id_ in self.numbers], np.int32)
        for row, id_ in self.others.items():
            found[row] = known.get(id_, known.get(number(id_), -1)) if hashable(id_) else -1
        return found

    def _rows_of_numbers(self, ids: IdColumn) -> np.ndarray:
        """`positions_in` where both have only integers; by bisection, as a dictionary takes 100 bytes an id."""
        wanted, numbers = np.asarray(self.numbers), np.asarray(ids.numbers)
        order = np.argsort(numbers, kind="stable").astype(np.int32)
        ordered, found = numbers[order], np.full(len(wanted), -1, np.int32)
        for first in range(0, len(wanted) if len(ordered) else 0, _TOGETHER):
            some = wanted[first : first + _TOGETHER]
            places = np.searchsorted(ordered, some).clip(max=len(ordered) - 1)
            found[first : first + _TOGETHER] = np.where(ordered[places] == some, order[places], -1)
        return found

    def repeats(self) -> dict[int, int]:
        """The row of each id that an earlier row has, too, in order, with the first of these rows."""
        if self.others:
            first: dict[Any, int] = {}
            return {row: first[id_] for row, id_ in enumerate(self) if first.setdefault(id_, row) != row}
        numbers = np.asarray(self.numbers)
        order = np.argsort(numbers, kind="stable")
        begins = np.append(True, numbers[order][1:] != numbers[order][:-1])[: len(order)]
        first_rows = order[begins][np.cumsum(begins) - 1]
        again = np.flatnonzero(~begins)
        again = again[np.argsort(order[again])]
        return dict(zip(order[again].tolist(), first_rows[again].tolist(), strict=True))

    def repeated(self) -> Iterator[tuple[Any, int]]:
        """Each id that occurs several times, and how often."""
        numbers = np.asarray(self.numbers)
        ordered = np.sort(np.delete(numbers, list(self.others)) if self.others else numbers)
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

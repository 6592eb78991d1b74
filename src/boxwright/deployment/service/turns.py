"""Who is next, where many wait for a few."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(eq=False)
class _Place:
    """One that waits, as in `Turns.wait`, until `called` is done."""

    arrived: int
    cost: int
    alone: bool
    called: asyncio.Future[None]


class Turns:
    """Lets a few work at once. The cheapest that waits is next; but if no dear one works, the dear one that came first.

    So a cheap one waits for no more than one dear one at a time, and no stream of cheap ones keeps out the dear.

    Args:
        count: how many work at once, at least 2.
        may_begin: whether one more may begin; call `wake` when it has changed.
    """

    def __init__(self, count: int, may_begin: Callable[[], bool] = lambda: True):
        self._free, self._may_begin = count, may_begin
        self._waiting: list[_Place] = []
        self._dear, self._alone = 0, False  # how many dear ones work; whether one does that must be alone

    async def wait(self, arrived: int, cost: int, alone: bool = False) -> Callable[[], None]:
        """Wait for a turn; one that is cancelled waits no longer.

        Args:
            arrived: less than that of all who arrived later.
            cost: 0 is cheap, all others are dear; of equal ones, the one that arrived first is next.
            alone: only one of these dear ones works at once.

        Returns:
            A function to call when the work is done.
        """
        place = _Place(arrived, cost, alone, asyncio.get_running_loop().create_future())
        self._waiting.append(place)
        self.wake()
        try:
            await place.called
        except asyncio.CancelledError:
            if not place.called.cancelled():  # its turn had just come
                self._end(place)
            raise
        return lambda: self._end(place)

    def wake(self) -> None:
        """Call as many as may begin."""
        while self._free and self._may_begin() and (place := self._next()):
            self._waiting.remove(place)
            self._free -= 1
            self._dear += place.cost > 0
            self._alone |= place.alone
            place.called.set_result(None)

    def _next(self) -> _Place | None:
        self._waiting = [place for place in self._waiting if not place.called.done()]
        able = [place for place in self._waiting if not (place.alone and self._alone)]
        dear = [place for place in able if place.cost > 0]
        if dear and not self._dear:
            return min(dear, key=lambda place: place.arrived)
        return min(able, key=lambda place: (place.cost, place.arrived), default=None)

    def _end(self, place: _Place) -> None:
        self._free += 1
        self._dear -= place.cost > 0
        self._alone &= not place.alone
        self.wake()

"""Who is next, where many wait for a few."""

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxwright.deployment.service.turns import Turns

COSTS = st.lists(st.integers(0, 3), min_size=1, max_size=20)
ALONE = 3  # the cost of those of which one works at once


class Line:
    """Some that wait, then work, and end one after the other in a random order.

    `begun` has for each the numbers of those that worked when it began, and of those that waited.
    """

    def __init__(self, costs: list[int], count: int):
        self.is_open, self.costs = False, costs
        self.turns = Turns(count, lambda: self.is_open)
        self.waiting, self.working = set(range(len(costs))), set[int]()
        self.begun: dict[int, tuple[set[int], set[int]]] = {}
        self.ends = [asyncio.Event() for _ in costs]
        self.tasks = [asyncio.create_task(self.work(number)) for number in range(len(costs))]

    async def work(self, number: int) -> None:
        cost = self.costs[number]
        try:
            end = await self.turns.wait(number, cost, cost == ALONE)
        finally:
            self.waiting.discard(number)
        self.begun[number] = self.working.copy(), self.waiting.copy()
        self.working.add(number)
        await self.ends[number].wait()
        self.working.discard(number)
        end()

    def begin(self) -> None:
        self.is_open = True
        self.turns.wake()

    async def run(self, rng: random.Random) -> None:
        """Begin when all wait, until all have ended."""
        await asyncio.sleep(0)
        self.begin()
        while not all(task.done() for task in self.tasks):
            for _ in range(3):
                await asyncio.sleep(0)
            if self.working:
                self.ends[rng.choice(sorted(self.working))].set()


async def finished(costs: list[int], count: int, seed: int) -> Line:
    line = Line(costs, count)
    await line.run(random.Random(seed))
    return line


@given(COSTS, st.integers(2, 4), st.integers(0, 9))
def test_who_is_next(costs, count, seed):
    line = asyncio.run(finished(costs, count, seed))
    assert len(line.begun) == len(costs)
    for number, (working, waiting) in line.begun.items():
        dear_works = any(costs[one] > 0 for one in working)
        assert len(working) < count
        assert not (costs[number] == ALONE and any(costs[one] == ALONE for one in working))
        if costs[number] == 0:  # overtakes all but cheap ones that came before it
            assert not any(costs[one] == 0 and one < number for one in waiting)
        elif dear_works:  # keeps no cheap one waiting
            assert not any(costs[one] == 0 for one in waiting)
        else:  # came first
            assert not any(costs[one] > 0 and one < number for one in waiting)


@pytest.mark.parametrize("cost", [1, ALONE])
def test_no_stream_of_cheap_ones_keeps_a_dear_one_waiting(cost):
    async def run() -> None:
        turns, numbers, dear = Turns(2), iter(range(10_000)), asyncio.Event()

        async def stream() -> None:
            while not dear.is_set():
                end = await turns.wait(next(numbers), 0)
                await asyncio.sleep(0)
                end()

        async def one() -> None:
            (await turns.wait(next(numbers), cost, cost == ALONE))()
            dear.set()

        await asyncio.gather(*(stream() for _ in range(8)), one())
        assert next(numbers) < 30

    asyncio.run(run())


@given(COSTS, st.data(), st.booleans())
def test_those_that_leave_are_dropped_and_the_others_work(costs, data, late):
    left = data.draw(st.sets(st.sampled_from(range(len(costs)))))

    async def run() -> Line:
        line = Line(costs, 2)
        await asyncio.sleep(0)
        if late:  # they leave in the moment in which two are called
            line.begin()
        for number in left:
            line.tasks[number].cancel()
        await line.run(random.Random(0))
        return line

    assert set(asyncio.run(run()).begun) == set(range(len(costs))) - left

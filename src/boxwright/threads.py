"""A `map` whose results background threads compute a little ahead."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_ahead(pool: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """`map(work, items)` in order, with at most `ahead` results ready or being computed; the pool ends with it.

    Exceptions in `work` are raised here. It does not wait for the threads to end: an iterator that is dropped is closed
    by the garbage collector, in any thread at any moment, even within `threading` while that holds the lock which
    waiting for a thread needs.

    Args:
        pool: threads for this alone.
        work: called with each item.
        items: read no further ahead than `ahead`.
        ahead: number of results, at least 1.
    """
    remaining = iter(items)
    try:
        pending = deque(pool.submit(work, item) for item in islice(remaining, ahead))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(work, item) for item in islice(remaining, 1))
            yield result
    finally:
        pool.shutdown(wait=False, cancel_futures=True)

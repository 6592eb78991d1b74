"""Work done a little ahead by background threads."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_ahead(pool: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """`map(work, items)` in order, at most `ahead` results ready or in the making; the threads end with this iterator.

    Exceptions in `work` are raised here. The end of the threads is not awaited: an iterator that is left behind is
    closed by the garbage collector, in any thread and at any moment, as within `threading` itself while it holds the
    lock that waiting for a thread takes.

    Args:
        pool: of threads, used for this alone.
        work: what is done with each item.
        items: taken no further ahead than the work.
        ahead: how many, at least 1.
    """
    waiting = iter(items)
    try:
        pending = deque(pool.submit(work, item) for item in islice(waiting, ahead))
        while pending:
            made = pending.popleft().result()
            pending.extend(pool.submit(work, item) for item in islice(waiting, 1))
            yield made
    finally:
        pool.shutdown(wait=False, cancel_futures=True)

"""Work ahead in threads: in order, bounded, and nobody waits for its end."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from boxwright.threads import map_ahead


def helpers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("map-ahead")]


def gone(threads: list[threading.Thread]) -> bool:
    for thread in threads:
        thread.join(30)
    return not any(thread.is_alive() for thread in threads)


@pytest.fixture
def pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(2, thread_name_prefix="map-ahead")


def test_order_is_kept_and_no_more_is_taken_than_worked_on(pool: ThreadPoolExecutor) -> None:
    taken = []

    def items():
        for item in range(50):
            taken.append(item)
            yield item

    results = map_ahead(pool, lambda item: (time.sleep(0.01 * (item % 2)), item)[1], items(), 4)
    for item in range(50):
        assert next(results) == item
        assert len(taken) <= item + 1 + 4
    assert list(results) == []


def test_closing_waits_for_no_thread(pool: ThreadPoolExecutor) -> None:
    """The garbage collector closes what is left behind, maybe under a lock that ending threads take."""
    hold = threading.Event()
    results = map_ahead(pool, lambda item: item == 0 or hold.wait(60), range(9), 4)
    assert next(results) is True
    start = time.monotonic()
    results.close()
    assert time.monotonic() - start < 30
    hold.set()
    assert gone(helpers())


def test_threads_end_with_an_exception(pool: ThreadPoolExecutor) -> None:
    results = map_ahead(pool, lambda item: 1 // (2 - item), range(9), 3)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert gone(helpers())

"""Files that would take a decoder too much time or memory, and decoders that end."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator

import pytest

from boxwright.deployment.service import decoders
from boxwright.deployment.service.decoders import Attempt, Decoders, Process
from boxwright.deployment.service.limits import Limits, RequestError
from helpers import bombs
from helpers.uploads import picture

SLOW = bombs.ppm_text(1000)
MOST = Attempt(60, 0, 2**30)


@pytest.fixture
def limited() -> Iterator[Callable[[Attempt], Decoders]]:
    """A function that makes decoders with two attempts, which may take just this much."""
    made: list[Decoders] = []

    def make(attempt: Attempt) -> Decoders:
        made.append(Decoders(Limits()))
        made[-1].attempts = (attempt, attempt)
        return made[-1]

    yield make
    for one in made:
        one.close()


def size_of(one: Decoders, file: bytes) -> Awaitable[tuple[int, int]]:
    async def decoded() -> tuple[int, int]:
        return (await one.decode(file, "it", 32)).size

    return decoded()


def refused(one: Decoders, file: bytes) -> str:
    """Why a file is refused with status 413."""
    with pytest.raises(RequestError) as error:
        asyncio.run(size_of(one, file))
    assert error.value.status == 413
    return str(error.value)


def test_a_file_that_takes_too_much_time_is_refused_and_others_are_decoded(limited):
    one = limited(Attempt(0.1, 0, 2**30))
    assert "too much time" in refused(one, SLOW)
    assert one.killed == 2
    assert one.busy == 0
    assert asyncio.run(size_of(one, picture())) == (96, 64)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux only")
@pytest.mark.parametrize("kind", ["png", "bmp", "tiff", "ppm"])
def test_a_file_that_takes_too_much_memory_is_refused_and_others_are_decoded(limited, kind):
    one = limited(Attempt(60, 0, 2**23))
    assert "too much memory" in refused(one, bombs.plain("RGB", (2500, 2500), kind))
    assert asyncio.run(size_of(one, picture())) == (96, 64)


def test_a_jpeg_of_very_many_scans_is_refused_before_it_is_decoded(limited):
    one = limited(Attempt(1, 0, 2**30))
    assert "over 100 scans" in refused(one, bombs.repeated_scans(3000, (200, 200)))
    assert one.killed == 0


def test_a_decoder_that_crashes_is_started_again(limited, shared_process):
    one = limited(MOST)

    async def crash() -> None:
        slow = asyncio.ensure_future(size_of(one, SLOW))
        await asyncio.sleep(0.3)
        assert one.busy == 1
        os.killpg(shared_process._process.pid, signal.SIGKILL)
        with pytest.raises(RequestError, match="crashes the decoder"):
            await slow
        assert await size_of(one, picture()) == (96, 64)

    asyncio.run(crash())


def test_a_dropped_request_keeps_nobody_waiting(limited):
    one = limited(Attempt(0.5, 0, 2**30))

    async def drop() -> None:
        slow = [asyncio.ensure_future(size_of(one, SLOW)) for _ in range(3)]
        await asyncio.sleep(0.1)
        assert one.busy == 1
        for dropped in slow:
            dropped.cancel()
        async with asyncio.timeout(20):
            assert await size_of(one, picture()) == (96, 64)

    for _ in range(2):  # in another loop, too
        asyncio.run(drop())


def test_decoders_end_whatever_they_do(limited, monkeypatch):
    monkeypatch.setattr(decoders, "Process", Process)

    async def end() -> None:
        one = limited(MOST)
        await one.ready()
        slow = asyncio.ensure_future(size_of(one, bombs.ppm_text(2000)))
        await asyncio.sleep(0.2)
        started = time.perf_counter()
        one.close()
        with pytest.raises(RequestError):
            await slow
        assert time.perf_counter() - started < 5

    asyncio.run(end())

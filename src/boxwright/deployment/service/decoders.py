"""Decode uploads in processes that can be ended, within limits of CPU time and memory.

Nearly all images are decoded at the first attempt, with little time and memory. What is larger or needs more is tried
again with more, in the end one image at a time, and those at an earlier attempt go first, so that a difficult file
delays no easy one.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import LifoQueue
from typing import Any

from PIL import Image

from boxwright.deployment.service import decoding_process
from boxwright.deployment.service.limits import Limits, RequestError
from boxwright.deployment.service.turns import Turns
from boxwright.runtime.inputs import DecodedImage


@dataclass(frozen=True)
class Attempt:
    """What an attempt to decode an image may take.

    Attributes:
        seconds: of CPU time.
        pixel_seconds: more of it, for each pixel of the image.
        bytes: of memory.
        most_pixels: of a larger image, only the header is read.
    """

    seconds: float
    pixel_seconds: float
    bytes: int
    most_pixels: float = math.inf


_FIRST = (Attempt(0.1, 0, 96 * 2**20, 2**21), Attempt(0.25, 0, 96 * 2**20))
_MORE_SECONDS = 10  # than a request may take; a process that has not answered then is ended
HELD_PIXELS = 2**24  # of decoded images that wait to be computed, 64 MB; while there are more, nothing is decoded


class Decoders:
    """Processes that decode.

    Args:
        limits: of requests.

    Attributes:
        count: how many processes there are.
        attempts: to decode an image, one after the other; only one image at a time is at the last.
        killed: how often an attempt took too much time.
    """

    count = 2

    def __init__(self, limits: Limits):
        self.limits, self.killed = limits, 0
        self.attempts = (*_FIRST, Attempt(0.5, 1.25e-7, max(_FIRST[-1].bytes, limits.decoding_bytes)))
        self._held_pixels, self._released = 0, asyncio.Event()
        self._arrivals = itertools.count()
        self._turns = Turns(self.count, lambda: self._held_pixels < HELD_PIXELS)
        self._threads = ThreadPoolExecutor(self.count, "decoder")  # each waits for a process
        self._processes = [Process() for _ in range(self.count)]
        self._free: LifoQueue[Process] = LifoQueue()
        for process in reversed(self._processes):
            self._free.put(process)

    @property
    def busy(self) -> int:
        """How many processes are decoding."""
        return self.count - self._free.qsize()

    def start(self) -> None:
        """Start the processes, and wait for none."""
        for process in self._processes:
            process.start()

    async def ready(self) -> None:
        """Wait until all processes are started."""
        self.start()
        await asyncio.gather(*(asyncio.to_thread(process.wait) for process in self._processes))

    async def decode(self, data: bytes, name: str, side: int) -> DecodedImage:
        """An uploaded image in mode RGB; see `boxwright.deployment.service.uploads.decode`.

        Args:
            data: the file.
            name: the caller's name for it, for errors.
            side: of the canvas that it will be fitted into, in pixels.

        Raises:
            RequestError: if it cannot be decoded, or not within the limits.
            TimeoutError: if the machine is too busy.
        """
        arrived, answer = next(self._arrivals), ""
        for number in range(len(self.attempts)):
            answer = await self._attempt(data, name, side, number, arrived)
            if isinstance(answer, DecodedImage):
                return answer
        raise RequestError(413, f"{name} takes too much {answer} to decode; send it as an ordinary JPEG or PNG.")

    @contextmanager
    def hold(self, image: DecodedImage) -> Iterator[None]:
        """Count the pixels of a decoded image as held."""
        pixels = image.image.width * image.image.height
        self._held_pixels += pixels
        try:
            yield
        finally:
            self._held_pixels -= pixels
            self._released.set()
            self._turns.wake()

    def close(self) -> None:
        """End the processes, whatever they do."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.end()

    async def room(self, held_pixels: int) -> None:
        """Wait until the decoded images that are held have fewer pixels."""
        while self._held_pixels >= held_pixels:
            self._released.clear()
            await self._released.wait()

    async def _attempt(self, data: bytes, name: str, side: int, number: int, arrived: int) -> DecodedImage | str:
        """The image, or what there was not enough of: time or memory."""
        end = await self._turns.wait(arrived, cost=number, alone=self._is_last(number))
        loop, asked = asyncio.get_running_loop(), self._threads.submit(self._ask, data, name, side, number)
        try:
            answer = await asyncio.wrap_future(asked)
        finally:
            if asked.done():
                loop.call_soon(end)  # once the image is held, which keeps others waiting
            else:  # the request is dropped, but its process is at work
                asked.add_done_callback(lambda _: _call(loop, end))
        self.killed += answer == decoding_process.TIME
        return answer

    def _is_last(self, number: int) -> bool:
        return number == len(self.attempts) - 1

    def _ask(self, data: bytes, name: str, side: int, number: int) -> DecodedImage | str:
        """`_attempt`, in a thread."""
        request = {"name": name, "side": side, "pixels": self.limits.pixels, **vars(self.attempts[number])}
        request["last"] = self._is_last(number)
        process = self._free.get()
        try:
            answer, pixels = process.ask(request, data, self.limits.seconds + _MORE_SECONDS)
        finally:
            self._free.put(process)
        if "failed" in answer:
            return answer["failed"]
        if "status" in answer:
            raise RequestError(answer["status"], answer["detail"])
        return DecodedImage(Image.frombytes("RGB", answer["decoded"], pixels), tuple(answer["size"]))


class Process:
    """A process that decodes one image at a time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._is_ready = False

    def start(self) -> None:
        """Start it, unless it runs; nothing is awaited."""
        if self._process is not None:
            return
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-P", "-m", decoding_process.__name__, str(theirs.fileno())]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env=_environment(),
            )
        self._connection, self._is_ready = Connection(ours.detach()), False

    def wait(self) -> None:
        """Wait until it is ready."""
        self.start()
        assert self._connection is not None
        if not self._is_ready:
            with suppress(EOFError, OSError):  # the next request says so
                self._connection.recv_bytes()
            self._is_ready = True

    def ask(self, request: dict[str, Any], data: bytes, seconds: float) -> tuple[dict[str, Any], bytes]:
        """Header and pixels of the answer; `TimeoutError` if there is none after so many seconds."""
        self.wait()
        assert self._connection is not None
        try:
            self._connection.send_bytes(json.dumps(request).encode())
            self._connection.send_bytes(data)
            if not self._connection.poll(seconds):
                self.end()
                raise TimeoutError
            return json.loads(self._connection.recv_bytes()), self._connection.recv_bytes()
        except (EOFError, OSError) as error:
            self.end()
            if isinstance(error, TimeoutError):
                raise
            raise RequestError(400, f"{request['name']} cannot be read as an image: it crashes the decoder.") from error

    def end(self) -> None:
        """End it at once; the next request starts another."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its fork, too
            process.wait()


def _call(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    """Call a function in the thread of a loop, unless that has ended."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(function)


def _environment() -> dict[str, str]:
    """That of this process, without the key.

    The same modules are found, no library needs threads there, and memory that is freed goes back to the system: what
    glibc kept of the last image would not count for the next one.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BOXWRIGHT_")}
    path = os.pathsep.join(filter(None, sys.path))
    return kept | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": path, "MALLOC_MMAP_THRESHOLD_": str(2**20)}

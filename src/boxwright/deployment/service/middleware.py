"""Checks before every route: the API key and the limits. A request is refused before its body is read."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress

from fastapi import HTTPException
from python_multipart.multipart import parse_options_header
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from boxwright.deployment.service.errors import error_response
from boxwright.deployment.service.limits import Limits
from boxwright.deployment.service.metrics import Metrics

_CLIENT_LEFT = 499  # a status of nginx, for counters
_DRAINED = 8  # times the largest request: bytes of a refused one that are received, so that its client sees why
_PARTS = 8  # of bodies, of up to 256 kB each, that are worked on at once
_TAIL = 1024  # bytes at the end of a form that must hold its closing boundary; a few bytes may follow it
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[\w.-]+)(?::\d*)?", re.ASCII)  # name or address, and port
_ORIGIN = re.compile(r"https?://[^\s/,]+")
OVER_CAPACITY = "too many images are waiting; come back later, as Retry-After says."


class OverCapacityError(Exception):
    """Too many images are waiting already."""


class Capacity:
    """How many images may be waiting or being computed; used by one thread, that of the event loop.

    Args:
        size: the most images.
        metrics: shows how many there are.
    """

    def __init__(self, size: int, metrics: Metrics):
        self.size, self.used = size, 0
        metrics.waiting.set_function(lambda: self.used)

    @contextmanager
    def reserve(self, images: int) -> Iterator[None]:
        """Hold places for this many images; raise `OverCapacityError` if there are not enough."""
        if self.used + images > self.size:
            raise OverCapacityError
        self.used += images
        try:
            yield
        finally:
            self.used -= images


class Upload:
    """A request that is arriving, or has arrived.

    Args:
        seconds: for it to arrive.

    Attributes:
        size: bytes that are there.
        timer: ends the wait for more; None while none is awaited.
        dropped: it has to make room for others.
    """

    def __init__(self, seconds: float):
        self.begun = asyncio.get_running_loop().time()
        self.end, self.size, self.dropped = self.begun + seconds, 0, False
        self.timer: asyncio.Timeout | None = None


class Uploads:
    """All requests that are arriving or waiting, whose bytes are bounded.

    Args:
        most: bytes; while there are more, no more are received.
        patience: seconds after which one that is still arriving is dropped.
    """

    def __init__(self, most: int, patience: float = 2.0):
        self.most, self.patience, self.size = most, patience, 0
        self._all: set[Upload] = set()
        self._released = asyncio.Event()
        self._at_once = asyncio.Semaphore(_PARTS)

    @contextmanager
    def counted(self, upload: Upload) -> Iterator[None]:
        """Count the bytes of an upload."""
        self._all.add(upload)
        try:
            yield
        finally:
            self._all.discard(upload)
            self._forget(upload)

    @contextmanager
    def forgotten_if_refused(self, upload: Upload) -> Iterator[None]:
        """Count no bytes of an upload any more if there is an error, as they are not kept."""
        try:
            yield
        except HTTPException:
            self._forget(upload)
            raise

    def add(self, upload: Upload, size: int) -> None:
        """More bytes are there."""
        upload.size += size
        self.size += size

    async def room(self) -> None:
        """Wait until more bytes may come."""
        while self.size >= self.most:
            self._released.clear()
            try:
                async with asyncio.timeout(self.patience / 2):
                    await self._released.wait()
            except TimeoutError:
                self._drop_late()

    async def turn(self) -> None:
        """Wait until a part may be worked on; between a few of them, other requests have their turn."""
        await self._at_once.acquire()
        asyncio.get_running_loop().call_soon(self._at_once.release)

    def _forget(self, upload: Upload) -> None:
        self.size -= upload.size
        upload.size = 0
        self._released.set()

    def _drop_late(self) -> None:
        """Give up uploads that have been arriving for long, until a quarter of the bytes is free: first those that have
        held most bytes for longest.
        """
        now = asyncio.get_running_loop().time()
        late = [one for one in self._all if one.timer and not one.dropped and now - one.begun > self.patience]
        left = self.size - sum(one.size for one in self._all if one.dropped)
        for worst in sorted(late, key=lambda one: one.size * (now - one.begun), reverse=True):
            if left <= 0.75 * self.most:
                break
            left -= worst.size
            worst.dropped = True
            assert worst.timer is not None
            worst.timer.reschedule(now)


class _Body:
    """The body of a request.

    Args:
        receive: gives it.
        scope: of the request.
        limits: of requests.

    Attributes:
        more: whether more of it may come.
    """

    def __init__(self, receive: Receive, scope: Scope, limits: Limits):
        headers = dict(scope["headers"])
        self._receive, self._limits = receive, limits
        self._declared = b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
        self.more = self._declared or scope["method"] == "POST"
        self._is_sent = b"expect" not in headers  # else the client waits to be asked for it
        self.ended = asyncio.Event()  # nothing more will come
        self.answered = False

    async def receive(self) -> Message:
        """The next part."""
        message = await self._receive()
        self._is_sent = True
        self.more = self.more and message.get("more_body", False)
        if not self.more:
            self.ended.set()
        return message

    def before_the_end_of(self, send: Send) -> Send:
        """`send`, which takes what is left of the body before an answer ends, as clients read only then."""

        async def drained(message: Message) -> None:
            more = self.more and self._declared
            if message["type"] == "http.response.start" and more:
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            elif more and not message.get("more_body", False):
                await send({**message, "more_body": True})
                try:
                    await self._drain()
                finally:  # the service may end meanwhile
                    self.answered = True
                    await send({"type": "http.response.body"})
                return
            self.answered = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        return drained

    async def _drain(self) -> None:
        left = _DRAINED * self._limits.bytes
        with suppress(TimeoutError):
            async with asyncio.timeout(self._limits.seconds):
                while self.more and self._is_sent and left > 0:
                    left -= len((await self.receive()).get("body", b""))


class ClientLeftError(Exception):
    """Nobody waits for an answer."""


async def _while_client_waits(app: Awaitable[None], body: _Body) -> None:
    """Answer a request, until its client closes the connection."""

    async def left() -> None:
        await body.ended.wait()
        while (await body.receive())["type"] != "http.disconnect":
            pass

    answer, leaving = asyncio.ensure_future(app), asyncio.ensure_future(left())
    try:
        await asyncio.wait((answer, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done() and not body.answered:
            raise ClientLeftError
        await answer
    finally:
        leaving.cancel()
        answer.cancel()
        await asyncio.wait((answer, leaving))


class ServiceMiddleware:
    """An ASGI layer around the routes.

    Args:
        app: the routes.
        limits, capacity, metrics: of the service.
        key: the API key; None needs none.
        known: the paths of the routes.
        open_paths: those that need no key.
        retry_after: gives the seconds after which to try again.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        capacity: Capacity,
        metrics: Metrics,
        key: str | None,
        known: frozenset[str],
        open_paths: frozenset[str],
        retry_after: Callable[[], int],
    ):
        self.app, self.limits, self.capacity, self.metrics = app, limits, capacity, metrics
        self.key, self.known, self.open_paths, self.retry_after = key, known, open_paths, retry_after
        self.uploads = Uploads(limits.held_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, answered = time.perf_counter(), 500, False
        bodiless = scope["method"] == "HEAD"  # otherwise treated as GET
        if bodiless:
            scope = {**scope, "method": "GET"}

        async def counted(message: Message) -> None:
            nonlocal status, answered
            status, answered = message.get("status", status), True
            await send({**message, "body": b""} if bodiless and "body" in message else message)

        body = _Body(receive, scope, self.limits)
        try:
            await self._checked(scope, body, body.before_the_end_of(counted))
        except ClientLeftError:
            status = _CLIENT_LEFT
        except asyncio.CancelledError:  # the service ends, and waits for nobody any longer
            if not answered:
                await over_capacity(self.retry_after())(scope, receive, counted)
        finally:
            path = scope["path"] if scope["path"] in self.known else "other"
            self.metrics.count_request(path, status, time.perf_counter() - started)

    async def _checked(self, scope: Scope, body: _Body, send: Send) -> None:
        headers = dict(scope["headers"])
        if self.key is not None and scope["path"] not in self.open_paths and not self._has_key(headers):
            refused = error_response(401, "the API key is missing or wrong.", {"WWW-Authenticate": "Bearer"})
            await refused(scope, body.receive, send)
        elif scope["method"] != "POST":
            await self.app(scope, body.receive, send)
        elif _length(headers) > self.limits.bytes:
            await error_response(413, self._too_long())(scope, body.receive, send)
        elif self.capacity.used >= self.capacity.size:
            await over_capacity(self.retry_after())(scope, body.receive, send)
        else:
            with self._limited(body, _ending(headers)) as limited:
                # The routes reserve the places when the images have arrived.
                await _while_client_waits(self.app(scope, limited, send), body)

    def _has_key(self, headers: dict[bytes, bytes]) -> bool:
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        assert self.key is not None
        return kind.lower() == b"bearer" and secrets.compare_digest(given.strip(), self.key.encode())

    @contextmanager
    def _limited(self, body: _Body, ending: bytes) -> Iterator[Receive]:
        """The body, unless it or all bodies together are too long, or it is late or cut short.

        Args:
            body: as it comes.
            ending: must occur near its end.
        """
        upload, tail = Upload(self.limits.seconds), b"\r\n"

        async def limited() -> Message:
            nonlocal tail
            if not body.more:
                return await body.receive()
            with self.uploads.forgotten_if_refused(upload):
                message = await self._next_part(upload, body)
                tail = (tail + message.get("body", b"")[-_TAIL:])[-_TAIL:]
                if message["type"] == "http.request" and not body.more and ending not in tail:
                    raise HTTPException(400, "the form is cut short: its closing boundary is missing.")
                return message

        with self.uploads.counted(upload):
            yield limited

    async def _next_part(self, upload: Upload, body: _Body) -> Message:
        try:
            async with asyncio.timeout_at(upload.end) as upload.timer:
                await self.uploads.room()
                message = await body.receive()
                self.uploads.add(upload, len(message.get("body", b"")))
                await self.uploads.turn()
        except TimeoutError:
            if upload.dropped:
                raise HTTPException(503, OVER_CAPACITY, {"Retry-After": str(self.retry_after())}) from None
            raise HTTPException(408, f"the request took over {self.limits.seconds:g} s to arrive.") from None
        finally:
            upload.timer = None
        if upload.size > self.limits.bytes:
            raise HTTPException(413, self._too_long())
        return message

    def _too_long(self) -> str:
        return f"the request is over {self.limits.bytes:,} bytes, which is the limit."


def over_capacity(seconds: int) -> Response:
    """The response while too many images are waiting."""
    return error_response(503, OVER_CAPACITY, {"Retry-After": str(seconds)})


def _ending(headers: dict[bytes, bytes]) -> bytes:
    """The closing boundary of a multipart form; empty for other bodies, or where no boundary is declared."""
    kind, options = parse_options_header(headers.get(b"content-type"))
    boundary = options.get(b"boundary") if kind == b"multipart/form-data" else None
    return b"\r\n--" + boundary + b"--" if boundary else b""


def _length(headers: dict[bytes, bytes]) -> int:
    declared = headers.get(b"content-length", b"0")
    return int(declared) if declared.isdigit() else 0


class BrowserMiddleware:
    """An ASGI layer that keeps web pages of others from a service that asks for no key.

    Any page may send forms to any address, this machine's included, and one whose name comes to mean this machine (DNS
    rebinding) may read the answers.

    Args:
        app: what it protects.
        hosts: names by which the service may be addressed, without ports; None is any.
        origins: of the pages that may use it besides its own, as ``https://example.org``; "*" is any.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None, origins: Collection[str]):
        self.app, self.hosts, self.origins = app, hosts, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        reason = self._reason(scope["headers"]) if scope["type"] == "http" else None
        app = self.app if reason is None else error_response(403, reason)
        await app(scope, receive, send)

    def _reason(self, headers: Iterable[tuple[bytes, bytes]]) -> str | None:
        """Why a request is refused."""
        host, origin = (_value(headers, name) for name in (b"host", b"origin"))
        if self.hosts is not None and _host_name(host) not in self.hosts:
            return f"this service is not {host[:100]!r}: address it as {', '.join(self.hosts)}, or set a key."
        if origin and origin not in (f"http://{host}", f"https://{host}") and not {"*", origin} & set(self.origins):
            fix = origin[:100] if _ORIGIN.fullmatch(origin) else "'*'"  # which null is, or a page that is a file
            return f"pages of {origin[:100]} may not use this service; --cors {fix} lets them."
        return None


def _value(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str:
    """The value of a header in lower case; several with commas between, which then is no valid one."""
    return ",".join(value.decode("latin-1").lower() for key, value in headers if key == name)


def _host_name(host: str) -> str | None:
    """The name in a header Host, without port and brackets; None for what is no such header."""
    parts = _HOST.fullmatch(host)
    return parts[1].strip("[]") if parts else None

"""What stands before every route: the key, the limits, the count. A request is refused before its body is read."""

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fastapi import HTTPException
from python_multipart.multipart import parse_options_header
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from boxwright.deployment.service.errors import refusal
from boxwright.deployment.service.limits import Limits
from boxwright.deployment.service.metrics import Metrics

_TAIL = 1024  # bytes, in which a form closes; behind that it may have a few that mean nothing
NO_ROOM = "too many images are waiting; come back later, as Retry-After says."


class NoRoomError(Exception):
    """There is no room for more images."""


class Room:
    """How many images may be waiting or in work; asked by one thread, that of the event loop.

    Args:
        size: so many.
        metrics: is told how many there are.
    """

    def __init__(self, size: int, metrics: Metrics):
        self.size, self.taken = size, 0
        metrics.waiting.set_function(lambda: self.taken)

    @contextmanager
    def take(self, images: int) -> Iterator[None]:
        """Room for this many; `NoRoomError` where there is none."""
        if self.taken + images > self.size:
            raise NoRoomError
        self.taken += images
        try:
            yield
        finally:
            self.taken -= images


class Guard:
    """An ASGI layer around the routes.

    Args:
        app: the routes.
        limits, room, metrics: of the service.
        key: the API key, or None where anybody may ask.
        known: the paths of the routes.
        open_paths: those that need no key.
        wait: how many seconds to come back in.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        room: Room,
        metrics: Metrics,
        key: str | None,
        known: frozenset[str],
        open_paths: frozenset[str],
        wait: Callable[[], int],
    ):
        self.app, self.limits, self.room, self.metrics = app, limits, room, metrics
        self.key, self.known, self.open_paths, self.wait = key, known, open_paths, wait
        self.held = 0  # bytes of bodies of requests that are not answered yet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500
        bodiless = scope["method"] == "HEAD"  # otherwise as GET
        if bodiless:
            scope = {**scope, "method": "GET"}

        async def counted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send({**message, "body": b""} if bodiless and "body" in message else message)

        try:
            await self._guarded(scope, receive, counted)
        finally:
            path = scope["path"] if scope["path"] in self.known else "other"
            self.metrics.answered(path, status, time.perf_counter() - started)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        if self.key is not None and scope["path"] not in self.open_paths and not self._has_key(headers):
            refused = refusal(401, "the API key is missing or wrong.", {"WWW-Authenticate": "Bearer"})
            await refused(scope, receive, send)
        elif scope["method"] != "POST":
            await self.app(scope, receive, send)
        elif _length(headers) > self.limits.bytes:
            await refusal(413, self._too_long())(scope, receive, send)
        elif self.room.taken >= self.room.size:
            await no_room(self.wait())(scope, receive, send)
        else:
            with self._limited(receive, _ending(headers)) as limited:
                # The routes take the places, once the images are there.
                await self.app(scope, limited, send)

    def _has_key(self, headers: dict[bytes, bytes]) -> bool:
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        assert self.key is not None
        return kind.lower() == b"bearer" and secrets.compare_digest(given.strip(), self.key.encode())

    @contextmanager
    def _limited(self, receive: Receive, ending: bytes) -> Iterator[Receive]:
        """The body, as long as it is not too long, comes in time and whole, and all here together are not too long.

        Args:
            receive: gives the body.
            ending: what stands near its end, as of a form that is not cut short.
        """
        end, size, more, tail = time.monotonic() + self.limits.seconds, 0, True, b"\r\n"

        async def limited() -> Message:
            nonlocal size, more, tail
            if not more:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, end - time.monotonic()))
            except TimeoutError:
                raise HTTPException(408, f"the request took over {self.limits.seconds:g} s to arrive.") from None
            body, more = message.get("body", b""), message.get("more_body", False)
            size, self.held, tail = size + len(body), self.held + len(body), (tail + body[-_TAIL:])[-_TAIL:]
            if size > self.limits.bytes:
                raise HTTPException(413, self._too_long())
            if self.held > self.limits.queue * self.limits.bytes:
                raise HTTPException(503, NO_ROOM, {"Retry-After": str(self.wait())})
            if message["type"] == "http.request" and not more and ending not in tail:
                raise HTTPException(400, "the form is cut short: its closing boundary is missing.")
            return message

        try:
            yield limited
        finally:
            self.held -= size

    def _too_long(self) -> str:
        return f"the request is over {self.limits.bytes:,} bytes, which is the limit."


def no_room(seconds: int) -> Response:
    """The answer to who comes while there is no room."""
    return refusal(503, NO_ROOM, {"Retry-After": str(seconds)})


def _ending(headers: dict[bytes, bytes]) -> bytes:
    """What closes a form of several parts; nothing where the body is none, or has parts without a boundary."""
    kind, options = parse_options_header(headers.get(b"content-type"))
    boundary = options.get(b"boundary") if kind == b"multipart/form-data" else None
    return b"\r\n--" + boundary + b"--" if boundary else b""


def _length(headers: dict[bytes, bytes]) -> int:
    said = headers.get(b"content-length", b"0")
    return int(said) if said.isdigit() else 0

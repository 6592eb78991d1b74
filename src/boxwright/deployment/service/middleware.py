"""Checks before every route: the API key and the limits. A request is refused before its body is read."""

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fastapi import HTTPException
from python_multipart.multipart import parse_options_header
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from boxwright.deployment.service.errors import error_response
from boxwright.deployment.service.limits import Limits
from boxwright.deployment.service.metrics import Metrics

_TAIL = 1024  # bytes at the end of a form that must hold its closing boundary; a few bytes may follow it
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
        self.held_bytes = 0  # of the bodies of requests that are not answered yet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500
        bodiless = scope["method"] == "HEAD"  # otherwise treated as GET
        if bodiless:
            scope = {**scope, "method": "GET"}

        async def counted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send({**message, "body": b""} if bodiless and "body" in message else message)

        try:
            await self._checked(scope, receive, counted)
        finally:
            path = scope["path"] if scope["path"] in self.known else "other"
            self.metrics.count_request(path, status, time.perf_counter() - started)

    async def _checked(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        if self.key is not None and scope["path"] not in self.open_paths and not self._has_key(headers):
            refused = error_response(401, "the API key is missing or wrong.", {"WWW-Authenticate": "Bearer"})
            await refused(scope, receive, send)
        elif scope["method"] != "POST":
            await self.app(scope, receive, send)
        elif _length(headers) > self.limits.bytes:
            await error_response(413, self._too_long())(scope, receive, send)
        elif self.capacity.used >= self.capacity.size:
            await over_capacity(self.retry_after())(scope, receive, send)
        else:
            with self._limited(receive, _ending(headers)) as limited:
                # The routes reserve the places when the images have arrived.
                await self.app(scope, limited, send)

    def _has_key(self, headers: dict[bytes, bytes]) -> bool:
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        assert self.key is not None
        return kind.lower() == b"bearer" and secrets.compare_digest(given.strip(), self.key.encode())

    @contextmanager
    def _limited(self, receive: Receive, ending: bytes) -> Iterator[Receive]:
        """The body, unless it or all bodies together are too long, or it is late or cut short.

        Args:
            receive: gives the body.
            ending: must occur near its end.
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
            size, self.held_bytes = size + len(body), self.held_bytes + len(body)
            tail = (tail + body[-_TAIL:])[-_TAIL:]
            if size > self.limits.bytes:
                raise HTTPException(413, self._too_long())
            if self.held_bytes > self.limits.queue * self.limits.bytes:
                raise HTTPException(503, OVER_CAPACITY, {"Retry-After": str(self.retry_after())})
            if message["type"] == "http.request" and not more and ending not in tail:
                raise HTTPException(400, "the form is cut short: its closing boundary is missing.")
            return message

        try:
            yield limited
        finally:
            self.held_bytes -= size

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

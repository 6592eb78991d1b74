"""uvicorn's HTTP protocol with limits on headers, on connections and on clients that do not read."""

from __future__ import annotations

import asyncio
import math
import re
import socket
from asyncio import TimerHandle
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_FRAMING = 4  # bytes of a body for each byte of what surrounds its chunks, which are tiny if there are fewer
_UPGRADE = re.compile(rb"\nupgrade(?=[ \t]*:)", re.IGNORECASE)
_PIPELINE = 16  # requests of a connection that wait for the answer to an earlier one


BACKLOG = 2048  # connections that the system accepts before the service does


def server(app: FastAPI, seconds: float) -> uvicorn.Server:
    """uvicorn with these limits.

    Args:
        app: the service.
        seconds: that waiting requests have when the server is told to end.
    """
    config = uvicorn.Config(
        app, log_level="error", access_log=False, backlog=BACKLOG, http=Protocol, ws="none", server_header=False,
        timeout_graceful_shutdown=math.ceil(seconds),
    )  # fmt: skip
    return uvicorn.Server(config)


class Protocol(HttpToolsProtocol):
    """One connection.

    Attributes:
        most_head_bytes: of a request line and headers, and of all else that is no body.
        head_seconds: for these to arrive, from the first byte.
        write_seconds: for a client to read what was sent, before more can be sent.
        most_connections: when there are more, the one that has waited longest for its client is closed.
        probe_seconds: how often to look whether a client that sends nothing more still waits for its answer.
    """

    most_head_bytes = 2**16
    head_seconds = 10.0
    write_seconds = 30.0
    most_connections = 400
    probe_seconds = 0.5

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes, self._in_head, self._waits_since = 0, True, self.loop.time()
        self._head_begun = False
        self._head_timer: TimerHandle | None = None
        self._write_timer: TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(self.head_seconds, self._head_is_late)
        if len(self.connections) > self.most_connections:
            waiting = [one for one in self.connections if isinstance(one, Protocol) and one._waits_for_client()]
            min(waiting, key=lambda one: one._waits_since, default=self).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """End; a timer that is left, as uvicorn leaves one after a reset, would keep the connection in memory."""
        self._end_timers()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read what came; refuse too large a head and too many requests at once."""
        if self._in_head:
            data = _without_upgrade(data)
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > self.most_head_bytes:
            self._refuse(
                b"431 Request Header Fields Too Large",
                b"the headers are too large, or the chunks of the body too small.",
            )
        elif len(self.pipeline) > _PIPELINE:
            self.transport.abort()

    def on_message_begin(self) -> None:
        """Begin to wait for the rest of the headers."""
        super().on_message_begin()
        self._head_begun = True
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_seconds, self._head_is_late)

    def on_headers_complete(self) -> None:
        """Pass the request on."""
        self._in_head = self._head_begun = False
        self._end_timers()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Pass a part of the body on."""
        self._head_bytes = max(0, self._head_bytes - len(body) - len(body) // _FRAMING)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Be ready for another request."""
        self._in_head, self._head_bytes, self._waits_since = True, 0, self.loop.time()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP; uvicorn would mix its answer with that to an earlier request."""
        self._refuse(b"400 Bad Request", b"this is no valid HTTP request.")

    def eof_received(self) -> bool:  # type: ignore[override]
        """Answer a complete request whose client sends nothing more: it may still read."""
        if self._waits_for_client():
            return False
        self.cycle.keep_alive = False
        self.loop.call_later(self.probe_seconds, self._probe, True)
        return True

    def pause_writing(self) -> None:
        """The client reads too slowly."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _waits_for_client(self) -> bool:
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._head_begun:
            self._refuse(b"408 Request Timeout", b"the headers took too long to arrive.")
        else:
            self.transport.close()

    def _refuse(self, status: bytes, detail: bytes) -> None:
        """Answer what is no whole request, and close; earlier requests of this connection are not answered."""
        if self.cycle is None or self.cycle.response_complete:
            body = b'{"detail":"%b"}' % detail
            head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close" % len(body)
            self.transport.write(b"HTTP/1.1 %b\r\n%b\r\n\r\n%b" % (status, head, body))
            self.transport.close()
        else:
            self.transport.abort()

    def _probe(self, first: bool) -> None:
        """End a connection whose client is gone, as one learns only by sending: an interim response asks nothing."""
        if self.transport.is_closing() or self.cycle.response_started or self.pipeline:
            return
        connection: socket.socket = self.transport.get_extra_info("socket")
        if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
            return
        if first and self.scope["http_version"] == "1.1":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.loop.call_later(self.probe_seconds, self._probe, False)

    def _end_timers(self) -> None:
        for timer in (self._head_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._head_timer = self._write_timer = None


def _without_upgrade(data: bytes) -> bytes:
    """A head without the offer to change the protocol, after which the parser would skip the body.

    Java's client makes that offer with every request.
    """
    end = data.find(b"\r\n\r\n")
    end = end if end >= 0 else len(data)
    return _UPGRADE.sub(b"\nIgnored", data[:end]) + data[end:]

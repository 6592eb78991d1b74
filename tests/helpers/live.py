"""Requests to a service as bytes, sent over sockets: what no client library would send, too."""

import re
import socket

from helpers.uploads import picture

FORM = {"content-type": "multipart/form-data; boundary=part"}


def talk(port: int, *pieces: bytes, finish: bool = False) -> bytes:
    """All that comes back until the service closes the connection; `finish` says that nothing more is sent."""
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        for piece in pieces:
            connection.sendall(piece)
        if finish:
            connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(2**16), b""))


def statuses(answers: bytes) -> list[int]:
    """The status of each answer, without interim ones."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 ([2-5]\d\d)", answers)]


def request(method: str, path: str, body: bytes = b"", **headers: str | None) -> bytes:
    """A request, after which the connection is closed; `_` in the name of a header is `-`, None leaves it out."""
    fields = {"host": "localhost", "connection": "close", "content_length": str(len(body)), **headers}
    lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items() if value is not None]
    return f"{method} {path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode("latin-1") + body


def form(file: bytes | None = None) -> bytes:
    """A form with an image."""
    head = b'--part\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n'
    return head + (picture() if file is None else file) + b"\r\n--part--\r\n"


def detect(file: bytes | None = None, **headers: str | None) -> bytes:
    """A request to find objects in an image."""
    return request("POST", "/detect", form(file), **{"content_type": FORM["content-type"], **headers})


def in_chunks(body: bytes, size: int) -> bytes:
    """A body in chunks."""
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"

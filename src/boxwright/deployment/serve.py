"""The verb `serve`: a detector as a service over HTTP, with a page to try it."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from PIL import Image

from boxwright.config import UserError, require
from boxwright.console import make_console
from boxwright.deployment.service.limits import Limits
from boxwright.extras import how_to_install
from boxwright.inference.open_detector import open_detector

KEY = "BOXWRIGHT_API_KEY"
_LOCAL = ("127.0.0.1", "::1", "localhost")


def serve(
    model: Path | str,
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str = "auto",
    limits: Limits = Limits(),  # noqa: B008
    cors: str | None = None,
) -> None:
    """Serve a detector over HTTP, with a page to try it in the browser.

    Requests of many clients are computed together. By default only this machine can use the service; --host changes
    that. If the environment variable BOXWRIGHT_API_KEY is set, clients must send that key. After Ctrl-C or SIGTERM the
    waiting requests are answered, and the service ends.

    Args:
        model: an exported .onnx file, which needs no torch, a checkpoint or the folder of a training run.
        host: the address to listen on; 0.0.0.0 is all addresses of this machine.
        port: the port; 0 takes any free one.
        device: auto, cpu, cuda, or for a checkpoint mps.
        limits: limits on requests.
        cors: the origin of web pages that may use the service besides its own, as https://example.org; several with
            commas between; * is any.
    """
    require(0 <= port < 2**16, f"--port is 0 to 65535, not {port}.")
    limits.check()
    key, origins = _key(), _origins(cors)
    hosts = _LOCAL if host in _LOCAL else None
    try:
        from boxwright.deployment.service.app import make_app
        from boxwright.deployment.service.decoders import Decoders
        from boxwright.deployment.service.protocol import BACKLOG, server
    except ModuleNotFoundError as error:
        raise UserError(how_to_install("serving", error.name)) from None
    with _upload_errors_unlogged(), _listening(host, port) as listener, closing(Decoders(limits)) as decoders:
        decoders.start()  # meanwhile the model is opened
        detector = open_detector(model, device)
        blank = Image.new("RGB", (detector.image_size,) * 2)
        # The first batch takes longer, and shows whether the model can be computed at all.
        detector.detect([detector.decode(blank)], 0.5, None)
        app = make_app(detector, limits, key, hosts, origins, decoders)
        with _listen_errors(host, port):  # two may have bound the address at once; only one can listen
            listener.listen(BACKLOG)  # before the address is printed: requests may follow at once
        address = f"[{host}]" if ":" in host else host
        console = make_console()
        console.print(f"{model}: http://{address}:{listener.getsockname()[1]} (Ctrl-C ends it)")
        if host not in _LOCAL and key is None:
            console.print(f"anybody who reaches this machine may ask; set {KEY} to demand a key")
        try:
            server(app, limits.seconds).run(sockets=[listener])
        except KeyboardInterrupt:  # raised again by uvicorn after a clean end
            console.print("ended")


def _key() -> str | None:
    """The key that callers must send, or None; whitespace around it, as from a file, is removed."""
    value = os.environ.get(KEY)
    if value is None:
        return None
    key = value.strip()
    require(key, f"{KEY} is set, but empty; give it a key, or unset it to let anybody ask.")
    require(key.isascii(), f"{KEY} must be of ASCII characters, as they go into a header.")
    return key


def _origins(cors: str | None) -> list[str]:
    """The origins in a text with commas."""
    origins = [origin.strip().rstrip("/").lower() for origin in (cors or "").split(",") if origin.strip()]
    for origin in origins:
        parts = urlsplit(origin)
        fits = origin == "*" or (parts.scheme in ("http", "https") and origin == f"{parts.scheme}://{parts.netloc}")
        require(fits, f"--cors is an origin such as https://example.org, or *, not {origin!r}.")
    return origins


@contextmanager
def _upload_errors_unlogged() -> Iterator[None]:
    """Keep libraries from logging broken uploads, which callers are told of in the response."""
    loggers = [logging.getLogger(name) for name in ("python_multipart", "python_multipart.multipart", "PIL")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _listening(host: str, port: int) -> socket.socket:
    """A socket bound to this address."""
    with _listen_errors(host, port):
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    return listener


@contextmanager
def _listen_errors(host: str, port: int) -> Iterator[None]:
    """Raise an error of the socket as a `UserError`."""
    try:
        yield
    except OSError as error:
        wrong = "host" if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL else "port"
        reason = f"{host}:{port} can't be listened at: {error.strerror or error}"
        raise UserError(f"{reason}. Choose another --{wrong}.") from error

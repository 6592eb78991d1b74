"""The process that decodes uploads: a file may make a decoder run for hours, take all memory or crash.

`python -m boxwright.deployment.service.decoding_process FD` answers requests that come through the socket FD. A request
is a header in JSON, then the file; an answer is a header in JSON, then the pixels. The work is done by a fork. If an
image takes more CPU time than it may, the system ends the fork, and the next one takes over within milliseconds.
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from PIL import Image

from boxwright.deployment.service.limits import RequestError
from boxwright.deployment.service.uploads import decode

_MOST_PIXEL_BYTES = 16  # that decoding takes, in a WebP
READY = b"ready"
TIME, MEMORY = "time", "memory"  # what an image may take too much of


def main() -> None:
    """Answer until the service closes the socket. Any end but that one and a lack of time ends this process, too."""
    connection = Connection(int(sys.argv[1]))
    Image.init()  # imports what reads the formats
    connection.send_bytes(READY)
    while True:
        fork = os.fork()
        if not fork:
            _answer_requests(connection)
            os._exit(0)
        _, status = os.waitpid(fork, 0)
        code = os.waitstatus_to_exitcode(status)
        if code != -signal.SIGPROF:
            sys.exit(code != 0)
        _send(connection, {"failed": TIME})


def _answer_requests(connection: Connection) -> None:
    allocated = _allocated()
    while True:
        try:
            request, data = json.loads(connection.recv_bytes()), connection.recv_bytes()
        except (EOFError, ConnectionError):
            return
        _limit_memory(allocated + request["bytes"])
        answer = _answer(request, data)
        _limit_memory(resource.getrlimit(resource.RLIMIT_DATA)[1])
        _send(connection, *answer)


def _answer(request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the pixels."""
    needed: float = math.inf if data[8:12] == b"WEBP" else 0  # a WebP decoder allocates before anything is known

    def opened(pixels: int) -> None:
        nonlocal needed
        needed = pixels * _MOST_PIXEL_BYTES
        if pixels > request["most_pixels"]:
            raise MemoryError  # in this attempt there is none for it
        _limit_time(request["seconds"] + pixels * request["pixel_seconds"])

    _limit_time(request["seconds"])
    try:
        decoded = decode(data, request["name"], request["side"], request["pixels"], opened)
        header = {"size": decoded.size, "decoded": decoded.image.size}
        return header, decoded.image.tobytes()
    except MemoryError:
        return {"failed": MEMORY}, b""
    except RequestError as error:
        if needed > request["bytes"] and not request["last"]:  # libraries have many words for too little memory
            return {"failed": MEMORY}, b""
        doubt = f" It may need over {request['bytes']:,} bytes to be decoded." if needed > request["bytes"] else ""
        return {"status": error.status, "detail": f"{error}{doubt}"}, b""
    finally:
        _limit_time(0)


def _limit_time(seconds: float) -> None:
    """End this process with SIGPROF after this much more CPU time; 0 is no limit."""
    signal.setitimer(signal.ITIMER_PROF, seconds)


def _limit_memory(size: int) -> None:
    """Fail to allocate more than this many bytes; systems other than Linux may take no notice."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (size, hard))


def _allocated() -> int:
    """Bytes that this process has allocated, as the limit counts them."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    except FileNotFoundError:
        return 2**30


def _send(connection: Connection, header: dict[str, Any], pixels: bytes = b"") -> None:
    connection.send_bytes(json.dumps(header).encode())
    connection.send_bytes(pixels)


if __name__ == "__main__":
    main()

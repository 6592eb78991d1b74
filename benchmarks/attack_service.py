"""Attacks on the service: each against a fresh server, while the rest of the world goes on using it.

    python benchmarks/attack_service.py model.onnx

During an attack, `/healthz` is asked again and again; right after it has begun, an honest request is sent. For each
attack, the table has the statuses that it got, the longest time that `/healthz` took, the most memory of the server and
its processes together (the sum of their resident sets), and the seconds until the honest request was answered. Bounds:
1 s, 800 MB and 5 s. Then the attack begins anew, and SIGTERM must end the server within the time of a request and some
seconds, with exit status 0. What breaks a bound is marked, and the exit status of this script is 1.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from service import multipart, request, served_process

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from helpers import bombs

MOST_SECONDS, MOST_BYTES, MOST_WAIT = 1.0, 800e6, 5.0
GRACE = 35.0  # seconds after SIGTERM: those of a request, and some
MOST_ATTACK = 60.0  # seconds that an attack lasts
JSON = {"content-type": "application/json"}
LARGE = (5792, 5792)  # pixels: the largest by default

Piece = bytes | float  # to send, or seconds to wait


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--only", nargs="*", default=[""], help="attacks whose names contain one of these")
    options = parser.parse_args()
    columns = ("attack", "statuses", "/healthz, longest", "memory", "honest request", "SIGTERM")
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}", flush=True)
    right = [
        report(options.model, name, attack())
        for name, attack in ATTACKS.items()
        if any(part in name for part in options.only)
    ]
    sys.exit(not all(right))


def report(model: Path, name: str, attackers: Sequence[Sequence[Piece]]) -> bool:
    """A row of the table; whether all bounds are kept."""
    with served_process(model) as (process, port):
        statuses, health, memory, honest = asyncio.run(Attack(process.pid, port).run(attackers))
        end = asyncio.run(ends_after(process, port, attackers))
        process.kill()
    values = [
        (health, MOST_SECONDS, "s"), (memory / 1e6, MOST_BYTES / 1e6, "MB"), (honest, MOST_WAIT, "s"), (end, GRACE, "s")
    ]  # fmt: skip
    cells = [
        f"{value:.{1 if unit == 's' else 0}f} {unit}{'' if value <= most else ' (!)'}" for value, most, unit in values
    ]
    failed = [status for status in statuses if status.startswith("5") and status != "503"]
    answers = ", ".join(f"{count} x {status}" for status, count in sorted(Counter(statuses).items()))
    print(f"| {name} | {answers}{' (!)' if failed else ''} | {' | '.join(cells)} |", flush=True)
    return all(value <= most for value, most, _ in values) and not failed


class Attack:
    """One attack on a server, and what it does to others."""

    def __init__(self, pid: int, port: int):
        self.pid, self.port, self.memory = pid, port, 0.0

    async def run(self, attackers: Sequence[Sequence[Piece]]) -> tuple[list[str], float, float, float]:
        """Statuses, seconds of `/healthz`, bytes of memory, seconds of the honest request."""
        await self.ask(honest_request())  # all is warm
        watching = asyncio.create_task(self.watch_memory())
        health = multiprocessing.Value("d", 0.0)
        watcher = multiprocessing.Process(target=watch_health, args=(self.port, health), daemon=True)
        watcher.start()  # in a process of its own, as the attackers keep this one busy
        attacking = [asyncio.create_task(attack(self.port, pieces)) for pieces in attackers]
        await asyncio.sleep(0.5)
        started = time.perf_counter()
        while (status := await self.ask(honest_request())) != "200":
            print(f"  (an honest request: {status})", file=sys.stderr)
            await asyncio.sleep(0.2)
        honest = time.perf_counter() - started
        statuses = await results(attacking, MOST_ATTACK)
        await asyncio.sleep(0.5)
        watching.cancel()
        assert watcher.is_alive(), "/healthz was answered with an error"
        watcher.kill()
        return statuses, health.value, self.memory, honest

    async def watch_memory(self) -> None:
        while True:
            self.memory = max(self.memory, tree_memory(self.pid))
            await asyncio.sleep(0.05)

    async def ask(self, message: bytes) -> str:
        return await attack(self.port, [message])


def watch_health(port: int, longest: Any) -> None:
    """Ask `/healthz` until the end of this process; `longest` has the longest time that it took, in seconds."""
    while True:
        started = time.perf_counter()
        assert asyncio.run(attack(port, [request("GET", "/healthz", b"")])) == "200"
        longest.value = max(longest.value, time.perf_counter() - started)
        time.sleep(0.1)


async def attack(port: int, pieces: Sequence[Piece]) -> str:
    """Send pieces; the status that comes back, "cut" for a broken connection, "closed" for none."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for piece in pieces:
            if isinstance(piece, bytes):
                for start in range(0, len(piece), 2**18):
                    writer.write(piece[start : start + 2**18])
                    await writer.drain()
            elif piece >= 0:
                await asyncio.sleep(piece)
            else:
                writer.close()
                return "left"
        line = await reader.readline()
        writer.close()
        return line.split()[1].decode() if line else "closed"
    except OSError:
        return "cut"


def tree_memory(pid: int) -> float:
    """Resident bytes of a process and all that it started."""
    pids, total = [pid], 0.0
    while pids:
        one = pids.pop()
        try:
            total += int(Path(f"/proc/{one}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            for children in Path(f"/proc/{one}/task").glob("*/children"):
                pids += [int(child) for child in children.read_text().split()]
        except OSError:  # it has ended
            continue
    return total


async def results(attacking: Sequence[asyncio.Task[str]], seconds: float) -> list[str]:
    """What attackers got; "none" in so many seconds."""
    done, late = await asyncio.wait(attacking, timeout=seconds) if attacking else (set(), set())
    for task in late:
        task.cancel()
    return [task.result() for task in done] + ["none"] * len(late)


async def ends_after(process: subprocess.Popen[str], port: int, attackers: Sequence[Sequence[Piece]]) -> float:
    """Seconds from SIGTERM in the middle of an attack to a clean end; infinity if there is none."""
    attacking = [asyncio.create_task(attack(port, pieces)) for pieces in attackers]
    await asyncio.sleep(1)
    started = time.perf_counter()
    process.send_signal(signal.SIGTERM)
    while (code := process.poll()) is None and time.perf_counter() - started < 2 * GRACE:
        await asyncio.sleep(0.1)
    seconds = time.perf_counter() - started
    await results(attacking, 0.1)
    return seconds if code == 0 else math.inf


def honest_request() -> bytes:
    return multipart(bombs.saved(Image.effect_noise((640, 480), 50).convert("RGB"), "jpeg"))


def as_json(body: bytes) -> bytes:
    return request("POST", "/detect/base64", body, JSON)


def filled(start: bytes, item: bytes, end: bytes, size: int = 2**24 - 1000) -> bytes:
    """JSON of this many bytes."""
    return as_json(start + item * ((size - len(start) - len(end)) // len(item)) + end)


def several(count: int, *pieces: Piece) -> list[Sequence[Piece]]:
    return [pieces] * count


def upload(file: bytes, count: int = 4) -> list[Sequence[Piece]]:
    return several(count, multipart(file))


def unfinished(count: int, size: int) -> list[Sequence[Piece]]:
    """Requests that stay incomplete."""
    whole = multipart(bytes(size))
    return several(count, whole[:-100], 40.0)


def form(part: bytes, size: int = 2**24 - 1000) -> bytes:
    body = part * (size // len(part)) + b"--part--\r\n"
    return request("POST", "/detect", body, {"content-type": "multipart/form-data; boundary=part"})


def large_tiles() -> bytes:
    """An image that is just too small to be averaged down, where the canvas has 640 pixels."""
    return bombs.plain("RGB", (3830, 3830), "png", compress_level=1)


FIELD = b'--part\r\nContent-Disposition: form-data; name="classes"\r\n\r\n\r\n'
FILE = FIELD.replace(b'"classes"', b'"images"; filename="a"')
ATTACKS: dict[str, Callable[[], Sequence[Sequence[Piece]]]] = {
    "none": list,
    "JSON of ones, 2 MB": lambda: several(4, filled(b'{"images":[1', b",1", b"]}", 2 * 10**6)),
    "JSON of ones": lambda: several(4, filled(b'{"images":[1', b",1", b"]}")),
    "JSON of empty lists": lambda: several(4, filled(b'{"images":[[]', b",[]", b"]}")),
    "JSON of objects": lambda: several(4, filled(b'{"images":[{}', b',{"a":1}', b"]}")),
    "JSON of escapes": lambda: several(4, filled(b'{"images":["', b"\\u0041", b'"]}')),
    "JSON, one long class": lambda: several(4, filled(b'{"images":["AAAA"],"classes":["', b"b", b'"]}')),
    "JSON, one long number": lambda: several(4, filled(b'{"images":["AAAA"],"threshold":0.', b"1", b"}")),
    "form of fields": lambda: several(4, form(FIELD)),
    "form of half boundaries": lambda: several(4, form(FIELD[:-2] + b"\r\n--par" * 100_000)),
    "form of carriage returns": lambda: several(
        4, form(FIELD.replace(b'"classes"', b'"images"; filename="a"') + b"\r" * 10**7)
    ),
    "JPEG of 6,000 scans": lambda: upload(bombs.repeated_scans(6000), 16),
    "PNG of a million chunks": lambda: upload(bombs.png_chunks(10**6)),
    "GIF of comments": lambda: upload(bombs.gif_comments(15 * 10**6)),
    "PPM with a long comment": lambda: upload(bombs.ppm_comment(15 * 10**6)),
    "PPM as text": lambda: upload(bombs.ppm_text(1500)),
    "PPM of 16 bits": lambda: upload(bombs.ppm_deep(1600)),
    "BMP of runs": lambda: upload(bombs.bmp_runs(2500)),
    "PNG, 33 million grey pixels of 16 bits": lambda: upload(bombs.plain("I;16", LARGE, "png", compress_level=1), 8),
    "PNG, 33 million transparent pixels": lambda: upload(bombs.plain("RGBA", LARGE, "png", compress_level=1), 8),
    "WebP, 19 million pixels": lambda: upload(bombs.plain("RGB", (4400, 4400), "webp", quality=1, method=0), 8),
    "WebP, 33 million pixels": lambda: upload(bombs.plain("RGB", LARGE, "webp", quality=1, method=0), 8),
    "TIFF, 25 million floats": lambda: upload(bombs.plain("F", (5000, 5000), "tiff", compression="tiff_lzw"), 8),
    "JPEG, progressive, 33 million pixels": lambda: upload(
        bombs.plain("RGB", LARGE, "jpeg", progressive=True, subsampling=0), 8
    ),
    "AVIF, 33 million transparent pixels": lambda: upload(
        bombs.plain("RGBA", LARGE, "avif", speed=10, quality=1, subsampling="4:4:4"), 8
    ),
    "JPEG 2000, 33 million pixels": lambda: upload(bombs.plain("RGB", LARGE, "jpeg2000", no_jp2=False), 8),
    "JPEG 2000 of 33,000 tiles": lambda: upload(
        bombs.plain("RGB", LARGE, "jpeg2000", tile_size=(32, 32), num_resolutions=1), 8
    ),
    "MPO, 33 million pixels": lambda: upload(
        bombs.plain("RGB", LARGE, "mpo", progressive=True, save_all=True, append_images=[Image.new("RGB", (8, 8))]), 8
    ),
    "QOI, 19 million pixels": lambda: upload(bombs.plain("RGB", (4400, 4400), "qoi"), 8),
    "64 images just under the size that is reduced": lambda: upload(large_tiles(), 64),
    "a header of 139 MB": lambda: several(2, b"GET / HTTP/1.1\r\nhost: localhost\r\na: " + b"a" * 139_000_000),
    "a header that never ends": lambda: several(50, b"GET / HTTP/1.1\r\nhost: localhost\r\na: ", 30.0),
    "trailers of 100 MB": lambda: several(
        2,
        b"POST /detect HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n0\r\n",
        b"a: " + b"a" * 100_000_000,
    ),
    "600 idle connections": lambda: several(600, 20.0),
    "40 uploads of 16 MB that stop": lambda: unfinished(40, 2**24 - 1000),
    "300 uploads of 1 MB that stop": lambda: unfinished(300, 2**20),
    "bodies over the limit": lambda: several(24, multipart(bytes(2**24 + 10**6))),
    "64 clients that leave": lambda: several(64, honest_request(), -1.0),
    "pipelined requests": lambda: several(4, request("GET", "/openapi.json", b"") * 100_000),
}


if __name__ == "__main__":
    main()

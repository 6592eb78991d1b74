"""The service under load compared with the bare runtime, and its health under thousands of requests, some invalid.

    python benchmarks/service.py model.onnx folder-of-images

One process serves, this one sends requests over 32 connections at once. The runtime then predicts on the same files in
a loop, with the batch size that is best there; both are measured in turns, several times, as other work on the machine
affects both. Each request is one image file; the runtime decodes the same files. At the end, requests of which a tenth
are invalid: memory of the serving process, statuses, and its health. Results are printed as Markdown.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from boxwright.runtime import Detector
from boxwright.runtime.sources import collect

CLIENTS = 32
BOUNDARY = "part"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--requests", type=int, default=400, help="of one measurement of speed")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--mixed", type=int, default=2000, help="requests of which a tenth are invalid")
    options = parser.parse_args()
    paths = collect(options.images)
    files = [path.read_bytes() for path in paths]
    with served(options.model) as port:
        if options.turns:
            speed(options, port, files)
        if options.mixed:
            mixed(options, port, files)


def speed(options: argparse.Namespace, port: int, files: Sequence[bytes]) -> None:
    detector = Detector(options.model, "cpu")
    rates = {size: in_a_loop(detector, files, options.requests // 4, size) for size in (1, 2, 4, 8, 16)}
    best = max(rates, key=lambda size: rates[size])
    print("| runtime alone, batch of | images per second |\n| --- | --- |")
    print("".join(f"| {size} | {rate:.1f} |\n" for size, rate in rates.items()))
    requests = [multipart(files[i % len(files)]) for i in range(options.requests)]
    asyncio.run(ask_all(port, requests[:16]))  # warms up the service, too
    print("Images per second, and CPU time per image in ms (of the service's process, and of the runtime's):\n")
    print("| turn | service | runtime | ratio | CPU, service | CPU, runtime | median response | 95 % |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    ratios, costs = [], []
    for turn in range(options.turns):
        cpu_before = time.process_time()
        alone = in_a_loop(detector, files, options.requests, best)
        cpu_alone = (time.process_time() - cpu_before) / options.requests
        before, started = gauge(port, "process_cpu_seconds_total"), time.perf_counter()
        responses = asyncio.run(ask_all(port, requests))
        rate = len(responses) / (time.perf_counter() - started)
        cpu = (gauge(port, "process_cpu_seconds_total") - before) / options.requests
        assert {status for status, _, _ in responses} == {200}
        times = sorted(seconds for _, seconds, _ in responses)
        ratios.append(rate / alone)
        costs.append(cpu_alone / cpu)
        median, late = times[len(times) // 2], times[len(times) * 95 // 100]
        print(
            f"| {turn} | {rate:.1f} | {alone:.1f} | {rate / alone:.2f} | {cpu * 1e3:.1f} | {cpu_alone * 1e3:.1f} "
            f"| {median:.2f} s | {late:.2f} s |",
            flush=True,
        )
    print(
        f"\nmedian of {options.turns} turns: throughput {statistics.median(ratios):.2f} of the runtime's; "
        f"CPU time of the runtime {statistics.median(costs):.2f} of the service's\n"
    )


def in_a_loop(detector: Detector, files: Sequence[bytes], images: int, batch_size: int) -> float:
    """Images per second."""
    images_files = [io.BytesIO(files[i % len(files)]) for i in range(images)]
    started = time.perf_counter()
    for first in range(0, images, batch_size):
        detector.predict([Image.open(file) for file in images_files[first : first + batch_size]], batch_size=batch_size)
    return images / (time.perf_counter() - started)


def mixed(options: argparse.Namespace, port: int, files: Sequence[bytes]) -> None:
    rng = random.Random(0)
    invalid = [invalid_request(files[0], number) for number in range(len(INVALID))]
    print("| requests | right responses | memory of the service |\n| --- | --- | --- |")
    print(f"| 0 | | {memory(port):.0f} MB |", flush=True)
    statuses: Counter[tuple[str, int]] = Counter()
    part = options.mixed // 4
    for number in range(1, 5):
        chosen = [rng.randrange(len(invalid)) if rng.random() < 0.1 else None for _ in range(part)]
        requests = [multipart(rng.choice(files)) if fault is None else invalid[fault] for fault in chosen]
        right = 0
        for fault, (status, _, body) in zip(chosen, asyncio.run(ask_all(port, requests)), strict=True):
            statuses["valid" if fault is None else INVALID[fault], status] += 1
            right += status == 200 if fault is None else 400 <= status < 500 and bool(json.loads(body)["detail"])
        print(f"| {number * part} | {right} of {part} | {memory(port):.0f} MB |", flush=True)
    print("\n| request | status | how many |\n| --- | --- | --- |")
    print("".join(f"| {what} | {status} | {count} |\n" for (what, status), count in sorted(statuses.items())))
    status = asyncio.run(ask_all(port, [request("GET", "/healthz", b"")]))[0][0]
    print(f"healthz afterwards: {status}")


INVALID = (
    "no image", "empty file", "cut short", "bomb of 400 megapixels", "over 16 MB", "no file", "threshold of 7",
    "unknown class", "no form", "JSON cut short", "no base64", "animation cut short",
)  # fmt: skip


def invalid_request(file: bytes, number: int) -> bytes:
    """A request of one kind of `INVALID`."""
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "png")
    frames = io.BytesIO()
    Image.new("L", (64, 64)).save(frames, "gif", save_all=True, append_images=[Image.new("L", (64, 64), 9)])
    as_json = {"content-type": "application/json"}
    return (
        multipart(b"this is no image"),
        multipart(b""),
        multipart(file[: len(file) // 3]),
        multipart(bomb.getvalue()),
        multipart(bytes(2**24)),
        multipart(None, threshold="0.5"),
        multipart(file, threshold="7"),
        multipart(file, classes="unheard of"),
        request("POST", "/detect", b"no form", {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}),
        request("POST", "/detect/base64", b'{"images": ["AAA', as_json),
        request("POST", "/detect/base64", b'{"images": ["/etc/passwd!"]}', as_json),
        multipart(frames.getvalue()[:40]),
    )[number]


def multipart(file: bytes | None, **fields: str) -> bytes:
    """A request with a file and fields."""
    parts = [f'name="{name}"\r\n\r\n{value}'.encode() for name, value in fields.items()]
    if file is not None:
        parts.append(b'name="images"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n' + file)
    body = b"".join(b"--%b\r\nContent-Disposition: form-data; %b\r\n" % (BOUNDARY.encode(), part) for part in parts)
    body += f"--{BOUNDARY}--\r\n".encode()
    return request("POST", "/detect", body, {"content-type": f"multipart/form-data; boundary={BOUNDARY}"})


def request(method: str, path: str, body: bytes, headers: dict[str, str] | None = None) -> bytes:
    """The bytes of a request, prepared in advance, so that sending costs little."""
    fields = {"host": "localhost", "content-length": str(len(body)), **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body


async def ask_all(port: int, requests: Sequence[bytes]) -> list[tuple[int, float, bytes]]:
    """Status, seconds and body of each response, in order; each of `CLIENTS` clients sends one request at a time."""
    responses: list[tuple[int, float, bytes]] = [(0, 0.0, b"")] * len(requests)
    waiting = iter(enumerate(requests))

    async def client() -> None:
        connection = None
        for index, one in waiting:
            started = time.perf_counter()
            if connection is None:
                connection = await asyncio.open_connection("127.0.0.1", port)
            status, body, closed = await ask(*connection, one)
            responses[index] = status, time.perf_counter() - started, body
            if closed:
                connection[1].close()
                connection = None
        if connection is not None:
            connection[1].close()

    await asyncio.gather(*(client() for _ in range(min(CLIENTS, len(requests)))))
    return responses


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, one: bytes) -> tuple[int, bytes, bool]:
    """Status, body, and whether the connection is closed."""
    writer.write(one)
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = re.search(r"content-length: (\d+)", head)
    assert length is not None, head
    return int(head.split()[1]), await reader.readexactly(int(length[1])), "connection: close" in head


def memory(port: int) -> float:
    """Memory of the serving process, in MB."""
    return gauge(port, "process_resident_memory_bytes") / 1e6


def gauge(port: int, name: str) -> float:
    """One of the service's own metrics."""
    text = asyncio.run(ask_all(port, [request("GET", "/metrics", b"")]))[0][2].decode()
    match = re.search(rf"^{name} (\S+)", text, re.MULTILINE)
    assert match is not None
    return float(match[1])


@contextmanager
def served(model: Path) -> Iterator[int]:
    """The port of a service in a process of its own."""
    with served_process(model) as (_, port):
        yield port


@contextmanager
def served_process(model: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A service in a process of its own, and its port."""
    command = [sys.executable, "-u", "-m", "boxwright", "serve", str(model), "--port", "0", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, int(re.findall(r"127\.0\.0\.1:(\d+)", process.stdout.readline())[0])
        finally:
            process.terminate()


if __name__ == "__main__":
    main()

"""Requests that cost more than they look, with the default limits; `benchmarks/attack_service.py` has many more."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import pytest

from boxwright.deployment.service import decoders
from boxwright.deployment.service.limits import Limits
from helpers import bombs
from helpers.live import FORM, detect, form, request, statuses, talk
from helpers.slow import Slow

SIZE = 2**21  # bytes
Process = decoders.Process  # before the tests share one


def as_json(start: bytes, item: bytes, end: bytes) -> bytes:
    body = start + item * (SIZE // len(item)) + end
    return request("POST", "/detect/base64", body, content_type="application/json")


ATTACKS: dict[str, tuple[int, Callable[[], bytes]]] = {
    "ones": (413, lambda: as_json(b'{"images":[1', b",1", b"]}")),
    "objects": (413, lambda: as_json(b'{"images":[{}', b',{"a":1}', b"]}")),
    "lists in lists": (400, lambda: as_json(b'{"images":', b"[", b"}")),
    "escapes": (413, lambda: as_json(b'{"images":["', b"\\/", b'"]}')),
    "a long class": (422, lambda: as_json(b'{"images":["AAAA"],"classes":["', b"b", b'"]}')),
    "a long number": (400, lambda: as_json(b'{"images":["AAAA"],"threshold":0.', b"1", b"}")),
    "scans": (413, lambda: detect(bombs.repeated_scans(6000, (400, 400)))),
    "chunks": (200, lambda: detect(bombs.png_chunks(2000))),
}


@pytest.fixture(scope="module")
def port(live_servers: Callable[..., int]) -> int:
    return live_servers(**asdict(Limits()))


@pytest.mark.parametrize("name", ATTACKS)
def test_the_service_goes_on_during_an_attack(port, name):
    status, make = ATTACKS[name]
    attack = make()
    with ThreadPoolExecutor(2) as pool:
        attacking = [pool.submit(talk, port, attack) for _ in range(2)]
        while not all(one.done() for one in attacking):
            check_health(port)
        assert {code for one in attacking for code in statuses(one.result())} == {status}
    check_health(port)
    assert statuses(talk(port, detect())) == [200]


class Recorder(Slow):
    """Remembers the widths of images, in the order in which they come."""

    def __init__(self) -> None:
        super().__init__()
        self.go.set()
        self.widths: list[int] = []

    def detect(self, images, threshold, classes):
        self.widths += [image.size[0] for image in images]
        return super().detect(images, threshold, classes)


def test_a_small_image_overtakes_large_ones(live_servers, monkeypatch):
    monkeypatch.setattr(decoders, "Process", Process)
    monkeypatch.setattr(decoders.Decoders, "count", 2)
    detector, large = Recorder(), bombs.plain("RGB", (2500, 2500), "png", compress_level=1)
    port = live_servers(detector, **asdict(Limits()))
    body = form(large).rpartition(b"--part--")[0] * 8 + b"--part--\r\n"
    attack = request("POST", "/detect", body, content_type=FORM["content-type"])
    with ThreadPoolExecutor(1) as pool:
        attacking = pool.submit(talk, port, attack)
        while b'"images":8' not in talk(port, request("GET", "/healthz")):
            assert not attacking.done()
        assert statuses(talk(port, detect())) == [200]
        assert statuses(attacking.result()) == [200]
    assert len(detector.widths) == 9
    assert detector.widths.index(96) < 7  # some are decoded while it arrives


def check_health(port: int) -> None:
    """It answers within ten seconds of CPU time: what blocks it takes longer, even on a fast machine."""
    started = time.process_time()
    assert statuses(talk(port, request("GET", "/healthz"))) == [200]
    assert time.process_time() - started < 10

"""A real server on a socket: what is no good HTTP, clients that misbehave, and web pages of others."""

import gc
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest

from boxwright.deployment.service.protocol import Protocol
from helpers.live import FORM, detect, form, in_chunks, request, statuses, talk
from helpers.slow import Slow

LOCAL = ("127.0.0.1", "::1", "localhost")
ORIGIN = "https://app.example"
CHUNKED = {"content_type": FORM["content-type"], "content_length": None, "transfer_encoding": "chunked"}
LONG = bytes(700_000)  # over the limit of bytes, and under what is still received


@pytest.fixture(scope="module")
def port(live_servers: Callable[..., int]) -> int:
    return live_servers(hosts=LOCAL)


@pytest.fixture(scope="module")
def locked(live_servers: Callable[..., int]) -> int:
    """With a key, for pages of one origin."""
    return live_servers(key="secret", cors=[ORIGIN])


@pytest.fixture(autouse=True)
def is_well_afterwards(port: int) -> Iterator[None]:
    yield
    assert statuses(talk(port, request("GET", "/healthz"))) == [200]


def test_an_image_is_found_in_whatever_pieces_it_comes(port):
    whole = detect()
    for pieces in ([whole], [whole[:50], whole[50:]], [whole[:-1], whole[-1:]]):
        assert b'"bbox": [10.0, 20.0, 30.0, 30.0]' in talk(port, *pieces)


@pytest.fixture
def slow() -> Iterator[Slow]:
    detector = Slow()
    yield detector
    detector.go.set()


# Headers


@pytest.mark.parametrize("headers", [b"a: " + b"a" * 70_000, b"a:\r\n" * 20_000, b"a" * 70_000])
def test_headers_are_limited_in_size_and_number(port, headers):
    assert statuses(talk(port, b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n" + headers)) == [431]
    assert statuses(talk(port, b"GET /" + b"a" * 70_000)) == [431]


def test_headers_are_limited_in_time(live_servers, monkeypatch):
    monkeypatch.setattr(Protocol, "head_seconds", 0.3)
    port = live_servers()
    started = time.perf_counter()
    assert statuses(talk(port, b"GET /healthz HTTP/1.1\r\nhost: loc")) == [408]
    assert talk(port) == b""
    assert statuses(talk(port, request("GET", "/healthz", connection="keep-alive"), b"GET")) == [200, 408]
    assert time.perf_counter() - started < 5


def test_the_connection_that_is_idle_for_longest_makes_room(live_servers, monkeypatch):
    monkeypatch.setattr(Protocol, "most_connections", 4)
    port = live_servers()
    with ExitStack() as stack:
        for _ in range(12):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), 30))
        assert statuses(talk(port, detect())) == [200]


# Bodies


@pytest.mark.parametrize(
    "long",
    [
        request("POST", "/detect", LONG, content_type=FORM["content-type"]),
        request("POST", "/detect", in_chunks(LONG, 5000), **CHUNKED),
        request("POST", "/detect/base64", LONG, content_type="application/json"),
    ],
)
def test_who_sends_too_much_is_told_so(port, locked, long):
    assert statuses(talk(port, long)) == [413]
    assert statuses(talk(locked, long)) == [401]


def test_who_asks_before_sending_too_much_is_told_so_at_once(port):
    assert statuses(talk(port, request("POST", "/detect", content_length="700000", expect="100-continue"))) == [413]


def test_what_is_left_of_a_refused_body_is_no_request(port):
    hidden = request("GET", "/model") * 5000
    assert statuses(talk(port, request("POST", "/detect", hidden, connection="keep-alive"))) == [413]
    assert statuses(talk(port, request("POST", "/nowhere", hidden[:5000]))) == [404]


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_a_body_in_chunks(port, size):
    assert statuses(talk(port, request("POST", "/detect", in_chunks(form(), size), **CHUNKED))) == [200]


def test_a_body_in_chunks_as_small_as_lines(live_servers):
    body = in_chunks(b'{"images": []' + b" " * 200_000 + b"}", 30)
    headers = CHUNKED | {"content_type": "application/json"}
    assert statuses(talk(live_servers(bytes=2**20), request("POST", "/detect/base64", body, **headers))) == [422]


@pytest.mark.parametrize(
    "flood",
    [
        b"1;" + b"a" * 100_000, b"0\r\n" + b"a: b\r\n" * 20_000, b"0" * 100_000,
        in_chunks(bytes(20_000), 1), in_chunks(bytes(90_000), 4),
    ],
)  # fmt: skip
def test_what_surrounds_chunks_is_limited(port, flood):
    answer = talk(port, request("POST", "/detect", **CHUNKED), flood)
    assert set(statuses(answer)) <= {400, 431}


def test_a_client_that_only_reads_on_is_answered(live_servers, slow, monkeypatch):
    monkeypatch.setattr(Protocol, "probe_seconds", 0.05)
    port = live_servers(slow)
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        connection.sendall(detect())
        connection.shutdown(socket.SHUT_WR)
        assert slow.begun.wait(30)
        time.sleep(0.2)
        slow.go.set()
        assert statuses(b"".join(iter(lambda: connection.recv(2**16), b""))) == [200]


@pytest.mark.parametrize("abruptly", [True, False])
def test_work_is_dropped_when_its_client_has_left(live_servers, slow, abruptly):
    port = live_servers(slow)
    with socket.create_connection(("127.0.0.1", port), 30) as first:
        first.sendall(detect())
        assert slow.begun.wait(30)
        with socket.create_connection(("127.0.0.1", port), 30) as second:
            second.sendall(detect())
            wait_for(port, b"boxwright_images_waiting 2.0")
            if abruptly:
                second.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        wait_for(port, b"boxwright_images_waiting 1.0")
        slow.go.set()
    wait_for(port, b'status="499"')
    assert slow.batches == [1]


def test_nothing_is_left_of_a_connection_that_is_reset(live_servers):
    port = live_servers()
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        connection.sendall(request("GET", "/healthz", connection="keep-alive"))
        assert statuses(connection.recv(2**16)) == [200]
        end = time.perf_counter() + 30
        while not (kept := [one for one in gc.get_objects() if type(one) is Protocol and one.timeout_keep_alive_task]):
            assert time.perf_counter() < end
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    while any(one.parser for one in kept):
        assert time.perf_counter() < end
    assert not any(one.timeout_keep_alive_task for one in kept)


def wait_for(port: int, text: bytes) -> None:
    """Until the metrics have this text."""
    end = time.perf_counter() + 10
    while text not in talk(port, request("GET", "/metrics")):
        assert time.perf_counter() < end


# Several requests, and what is none


def test_requests_of_one_connection_are_answered_in_order(port):
    asked = [request(*what, connection="keep-alive") for what in (("GET", "/model"), ("HEAD", "/"), ("GET", "/no"))]
    answers = talk(port, b"".join(asked) + detect())
    assert statuses(answers) == [200, 200, 404, 200]
    assert answers.index(b'"image_size"') < answers.index(b"Not Found") < answers.index(b'"annotations"')


INSIDE = b"GET /model HTTP/1.1\r\nhost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    "headers",
    [
        b"content-length: 0\r\ncontent-length: %d",
        b"content-length: %d\r\ntransfer-encoding: chunked",
        b"transfer-encoding: chunked\r\ncontent-length: %d",
        b"transfer-encoding: xchunked\r\na: %d",
        b"transfer-encoding: chunked, identity\r\na: %d",
        b"transfer-encoding: identity\r\ncontent-length: %d",
        b"content-length : %d",
        b"content-length: +%d",
        b"content-length: -%d",
        b"content-length: %d,0",
        b"content-length: 0x%d",
        b"a: b\r\n content-length: %d",
        b"a: b\rcontent-length: %d",
        b"a\0: %d",
        b": %d",
        b"a b: %d",
    ],
)
def test_a_request_hidden_in_another_is_not_answered(port, headers):
    """Where a proxy in front sees one request, here are no two."""
    line = b"POST /nowhere HTTP/1.1\r\nhost: localhost\r\n"
    answer = talk(port, line + headers % len(INSIDE) + b"\r\n\r\n" + INSIDE, finish=True)
    assert b"image_size" not in answer
    assert statuses(answer) in ([400], [404], [])


@pytest.mark.parametrize(
    "wrong",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET http:// HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"CONNECT other.example:443 HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"G\0ET / HTTP/1.1\r\n\r\n",
        b"\r\n" * 1000 + b"nonsense\r\n\r\n",
    ],
)
def test_what_is_no_request_to_this_service_is_refused(port, wrong):
    assert all(400 <= status < 500 for status in statuses(talk(port, wrong, finish=True)))


def test_nonsense_after_a_request_is_not_its_answer(live_servers, slow):
    """An answer that comes first would be taken for that to the earlier request."""
    port = live_servers(slow)
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        connection.sendall(detect(connection="keep-alive"))
        assert slow.begun.wait(30)
        connection.sendall(b"nonsense\r\n\r\n")
        connection.settimeout(10)
        with suppress(ConnectionResetError):
            assert not connection.recv(2**16)


def test_many_ranges_of_a_page_cost_little(port):
    started = time.process_time()
    ranges = ",".join(f"{start}-{start}" for start in range(0, 12_000, 2))
    assert set(statuses(talk(port, request("GET", "/page.js", range=f"bytes={ranges}")))) <= {200, 206, 416}
    assert time.process_time() - started < 10


@pytest.mark.parametrize(
    "path", ["/%ff", "/%zz", "/%", "/detect%00", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/.."]
)
def test_strange_paths_are_not_found(port, path):
    assert statuses(talk(port, request("GET", path))) == [404]


def test_other_protocols_are_not_taken_up(port):
    """Java's client offers h2c with every request."""
    socket_key = {"sec_websocket_key": "AAAAAAAAAAAAAAAAAAAAAA==", "sec_websocket_version": "13"}
    asked = request("GET", "/model", connection="Upgrade, close", upgrade="websocket", **socket_key)
    assert statuses(talk(port, asked, finish=True)) == [200]
    newer = {"connection": "Upgrade, HTTP2-Settings, close", "upgrade": "h2c", "http2_settings": "AAMAAABk"}
    assert statuses(talk(port, detect(**newer), finish=True)) == [200]


# Web pages


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "localhost."])
def test_the_service_has_the_names_of_this_machine(port, host):
    expected = 403 if host.endswith(".") else 200
    assert statuses(talk(port, request("GET", "/model", host=host))) == [expected]


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:8000", "localhost.evil.example", "", "[", "127.0.0.1.nip.io", "evil@localhost",
        "localhost@evil.example", "localhost/evil", "localhost:x", "[::1", "::1", "localhost#", "[localhost]",
    ],
)  # fmt: skip
def test_a_page_whose_name_comes_to_mean_this_machine_gets_nothing(port, host):
    answer = talk(port, request("GET", "/model", host=host))
    assert statuses(answer) == [403]
    assert b"image_size" not in answer
    assert statuses(talk(port, detect(host=host, origin=f"http://{host}"))) == [403]


def test_a_request_has_one_host(port):
    assert statuses(talk(port, request("GET", "/model", HOST="evil.example"))) == [403]
    assert statuses(talk(port, request("GET", "/model", host=None))) == [403]


@pytest.mark.parametrize(
    ("origin", "fix"),
    [
        ("https://evil.example", "https://evil.example"), ("null", "'*'"), ("file://", "'*'"),
        ("http://localhost:9999", "http://localhost:9999"), ("extension://localhost", "'*'"),
        ("http://localhost.evil.example", "http://localhost.evil.example"),
    ],
)  # fmt: skip
def test_pages_of_others_may_not_send_forms(port, origin, fix):
    answer = talk(port, detect(origin=origin))
    assert statuses(answer) == [403]
    assert f"--cors {fix} lets them".encode() in answer


def test_its_own_page_may(port):
    for host in ("localhost:8000", "127.0.0.1:8000"):
        assert statuses(talk(port, detect(host=host, origin=f"http://{host}"))) == [200]


def test_pages_of_a_named_origin_may_use_a_service_with_a_key(locked):
    asks = {
        "origin": ORIGIN,
        "access_control_request_method": "POST",
        "access_control_request_headers": "authorization",
    }
    preflight = talk(locked, request("OPTIONS", "/detect", **asks)).lower()
    assert statuses(preflight.upper()) == [200]
    assert f"access-control-allow-origin: {ORIGIN}".encode() in preflight
    answer = talk(locked, detect(origin=ORIGIN, authorization="Bearer secret")).lower()
    assert f"access-control-allow-origin: {ORIGIN}".encode() in answer
    refused = talk(locked, detect(origin=ORIGIN)).lower()  # why can be read, too
    assert statuses(refused.upper()) == [401]
    assert f"access-control-allow-origin: {ORIGIN}".encode() in refused
    others = talk(locked, request("OPTIONS", "/detect", **{**asks, "origin": "https://evil.example"})).lower()
    assert statuses(others.upper()) == [400]
    assert b"evil.example" not in others


def test_pages_of_a_named_origin_may_use_a_service_without_a_key(live_servers):
    port = live_servers(hosts=LOCAL, cors=[ORIGIN])
    assert statuses(talk(port, detect(origin=ORIGIN))) == [200]
    assert statuses(talk(port, detect(origin="https://evil.example"))) == [403]
    assert statuses(talk(port, detect(origin=ORIGIN, host="evil.example"))) == [403]

"""Shards at URLs: an S3 server and an HTTP server on this machine."""

import functools
import http.server
import multiprocessing
import os
import shutil
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from boxwright.config import Augment, UserError
from boxwright.data.cache import open_batches
from boxwright.data.loader import train_batches
from boxwright.data.read import read
from boxwright.data.shards import fetch
from boxwright.data.shards.write import shard, write_shards
from boxwright.files import as_location
from boxwright.inspection.check import check
from helpers import datasets
from helpers.sharded import sharded


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BOXWRIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def served(handler: type[http.server.BaseHTTPRequestHandler] | functools.partial) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A folder over HTTP, in ranges, as servers of files do."""

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        span, file = self.headers.get("Range"), Path(self.translate_path(self.path))
        if not span or not file.is_file():
            return super().do_GET()
        first, last = (int(part) for part in span.removeprefix("bytes=").split("-"))
        data = file.read_bytes()
        part = data[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return sharded(tmp_path_factory.mktemp("remote"), images=24)


@pytest.fixture
def web(places: tuple[Path, Path]) -> Iterator[str]:
    pytest.importorskip("aiohttp")
    yield from served(functools.partial(Quiet, directory=str(places[1])))


class Forbidding(http.server.BaseHTTPRequestHandler):
    """An S3 server that allows nothing."""

    def log_message(self, *_: object) -> None: ...

    def _forbid(self) -> None:
        body = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _forbid


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials as a user has them; file systems that earlier tests opened are forgotten."""
    s3fs = pytest.importorskip("s3fs")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def bucket(keys: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of moto's S3 server."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    urllib.request.urlopen(f"http://{host}:{port}/moto-api/reset", data=b"")
    import s3fs

    s3fs.S3FileSystem().mkdir("cells")
    yield "s3://cells/set"
    server.stop()


def batches(data: Path | str) -> list[torch.Tensor]:
    source = open_batches(read(data).splits["all"], 32, quiet=True)
    return [batch.images_BCHW for batch in train_batches(source, 6, Augment(views=1), seed=0, epoch=0)]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


def until(condition: object) -> None:
    for _ in range(200):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError


@pytest.mark.parametrize("text", ["s3://cells/set", "gs://cells", "https://host/cells", "simplecache::s3://cells/set"])
def test_a_url_stays_one_though_it_was_a_path(text):
    assert as_location(text) == as_location(Path(text)) == text


@pytest.mark.parametrize("text", ["cells", "/data/cells", "C:/cells", "./s3:x"])
def test_paths_stay_paths(text):
    assert as_location(text) == Path(text)


def test_training_over_http_is_that_from_the_folder(places, web, home):
    assert same(batches(web), batches(places[1]))
    assert check(web).splits == check(places[1]).splits
    until(lambda: len(list(home.glob("shards/*/copies/*.tar"))) == len(list(places[1].glob("*.tar"))))


def test_copies_of_shards_serve_when_the_server_is_gone(places, web, home, monkeypatch):
    records = read(web).splits["all"]
    for record in records:
        record.path.read_bytes()
    until(lambda: len(list(home.glob("shards/*/copies/*.tar"))) == len(list(places[1].glob("*.tar"))))
    monkeypatch.setattr("boxwright.data.shards.storage.RemoteFolder.read", None)
    local = read(places[1]).splits["all"]
    assert all(one.path.read_bytes() == other.path.read_bytes() for one, other in zip(records, local, strict=True))


def test_a_damaged_copy_is_read_anew(places, web, home):
    record = read(web).splits["all"][0]
    data = record.path.read_bytes()
    until(lambda: list(home.glob("shards/*/copies/all-00000.tar")))
    (copy,) = home.glob("shards/*/copies/all-00000.tar")
    copy.write_bytes(copy.read_bytes()[:600] + b"?" + copy.read_bytes()[601:])
    assert read(web).splits["all"][0].path.read_bytes() == data


def test_copies_keep_to_their_limit_and_the_longest_unused_goes_first(tmp_path, home, monkeypatch):
    copies = fetch._Copies(home / "shards" / "a" / "copies")
    monkeypatch.setenv("BOXWRIGHT_CACHE_SIZE", "6000")  # half of it for copies
    for number in range(3):
        assert copies.make_room(1000)
        copies.add(f"{number}.tar", bytes(1000))
    assert not copies.make_room(1000)  # all are in use
    for number, age in enumerate((500, 900, 100)):
        os.utime(home / f"shards/a/copies/{number}.tar", (time.time() - age,) * 2)
    assert copies.make_room(1500)
    assert sorted(file.name for file in home.glob("shards/a/copies/*")) == ["2.tar"]
    assert copies.find("1.tar", 1000) is None
    assert not copies.make_room(4000)


def test_a_shard_larger_than_the_limit_removes_no_copy_and_is_told_once(home, monkeypatch, capsys):
    copies = fetch._Copies(home / "shards" / "a" / "copies")
    monkeypatch.setenv("BOXWRIGHT_CACHE_SIZE", "6000")
    copies.add("0.tar", bytes(1000))
    os.utime(home / "shards/a/copies/0.tar", (time.time() - 500,) * 2)
    assert not copies.make_room(4000)
    assert not copies.make_room(4000)
    assert copies.find("0.tar", 1000)
    assert capsys.readouterr().err.count("BOXWRIGHT_CACHE_SIZE") == 1


def test_a_server_without_ranges_gives_the_same_batches(places, home):
    pytest.importorskip("aiohttp")

    class Whole(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    for url in served(functools.partial(Whole, directory=str(places[1]))):
        assert same(batches(url), batches(places[1]))


def test_a_shard_that_is_missing_over_http_is_named(tmp_path):
    pytest.importorskip("aiohttp")
    _, shards = sharded(tmp_path)
    for url in served(functools.partial(Quiet, directory=str(shards))):
        records = read(url).splits["all"]
        (shards / "all-00001.tar").unlink()
        with pytest.raises(UserError, match=r"/all-00001.tar is missing; copy it again"):
            batches(url)
        assert records[0].path.read_bytes()


def test_a_url_without_shards(tmp_path):
    pytest.importorskip("aiohttp")
    for url in served(functools.partial(Quiet, directory=str(tmp_path))):
        with pytest.raises(UserError, match=r"holds no shards.json; over a network"):
            read(url)


def test_a_url_of_nothing_known():
    pytest.importorskip("fsspec")
    with pytest.raises(UserError, match="no URL that fsspec knows: Protocol not known: ftq"):
        read("ftq://host/cells")


def test_s3_round_trip(places, bucket, home, tmp_path):
    write_shards(read(places[0]), bucket, 4 * 3_600)
    assert same(batches(bucket), batches(places[1]))
    with pytest.raises(UserError, match="holds a data set in shards already"):
        shard(places[0], bucket)


@pytest.mark.parametrize("name", ["a b", "a+b", "a#b", "a%20b", "a?b", "a[b]*", "ä"])
def test_places_of_any_name(places, bucket, name):
    place = f"s3://cells/{name}"
    write_shards(read(places[0]), place, 4 * 3_600)
    assert same(batches(place), batches(places[1]))


def test_a_forked_process_connects_anew(places, bucket, home):
    write_shards(read(places[0]), bucket, 4 * 3_600)
    files = [record.path for record in read(bucket).splits["all"]]
    data, context = files[0].read_bytes(), multiprocessing.get_context("fork")
    shutil.rmtree(home / "shards")  # so that the process has to read from the bucket
    here, there = context.Pipe()
    process = context.Process(target=lambda: there.send(files[0].read_bytes()))
    process.start()
    assert here.poll(30), "it hangs"
    assert here.recv() == data
    process.join()


def test_what_fails_leaves_nothing_in_the_bucket(bucket, tmp_path):
    import s3fs

    source = datasets.coco(tmp_path / "set", datasets.coco_content(12))
    image = source / "images" / "011.jpg"
    image.write_bytes(image.read_bytes()[:700])
    with pytest.raises(UserError, match=r"011.jpg"):
        write_shards(read(source), bucket, 4 * 3_600)
    s3fs.S3FileSystem.clear_instance_cache()
    assert s3fs.S3FileSystem().find("cells") == []


def test_a_shard_missing_in_the_bucket_is_found_at_once(places, bucket):
    import s3fs

    write_shards(read(places[0]), bucket, 4 * 3_600)
    s3fs.S3FileSystem().rm_file("cells/set/all-00002.tar")
    with pytest.raises(UserError, match=r"s3://cells/set/all-00002.tar is missing; copy it again"):
        read(bucket)


def test_a_bucket_that_is_not_there(bucket):
    with pytest.raises(UserError, match=r"s3://other/set holds no shards.json"):
        read("s3://other/set")
    with pytest.raises(UserError, match=r"s3://other/set/.* can't be written: .*bucket does not exist.*; "):
        shard(datasets.coco(Path(os.environ["BOXWRIGHT_CACHE"]) / "set"), "s3://other/set")


@pytest.mark.parametrize("use", [read, check, lambda url: shard(datasets.coco(Path("set")), url)])
def test_a_bucket_without_rights(keys, monkeypatch, tmp_path, use):
    monkeypatch.chdir(tmp_path)
    for url in served(Forbidding):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(UserError, match=r"s3://cells/set/shards.json can't be read: .*; give credentials that may"):
            use("s3://cells/set")


def test_without_credentials(keys, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for url in served(Forbidding):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(UserError, match=r"can't be read: .*; give credentials that may"):
            read("s3://cells/set")

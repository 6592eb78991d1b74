"""A cache that grows gives the batches of a complete one, whatever befalls it in between."""

import json
import os
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from boxwright.config import UserError
from boxwright.data import growing_cache
from boxwright.data.cache import build
from boxwright.data.growing_cache import ROW, GrowingCache
from boxwright.data.records import Record
from boxwright.types import Batch
from helpers import image_files as samples

SIDE = 48
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    folder = tmp_path / "images"
    folder.mkdir()
    return samples.records(folder, 10)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "growing"


@pytest.fixture
def whole(records: list[Record], tmp_path: Path) -> Batch:
    """The batch of all images from a complete cache."""
    return build(records, SIDE, mode="pixels", folder=tmp_path / "complete", quiet=True).batch(range(10))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that are decoded, one after another."""
    names, fit = [], growing_cache.fit_image

    def noted(record: Record, side: int, mode: str) -> object:
        names.append(record.path.name)
        return fit(record, side, mode)

    monkeypatch.setattr(growing_cache, "fit_image", noted)
    return names


def grown(records: list[Record], home: Path) -> GrowingCache:
    cache = build(records, SIDE, mode="grow", folder=home, quiet=True)
    assert isinstance(cache, GrowingCache)
    return cache


def assert_same(batch: Batch, whole: Batch) -> None:
    for field in fields(Batch):
        one, other = getattr(batch, field.name), getattr(whole, field.name)
        assert one.dtype == other.dtype, field.name
        assert torch.equal(one, other), field.name


def file_of(home: Path, ending: str) -> Path:
    (file,) = home.glob(f"*-growing/*.{ending}")
    return file


@pytest.mark.parametrize("mode", ["pixels", "jpeg"])
def test_every_batch_is_that_of_a_complete_cache(
    records: list[Record], home: Path, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mode == "jpeg":
        monkeypatch.setattr("boxwright.data.cache._memory", lambda: 1.0)
    complete = build(records, SIDE, mode=mode, folder=tmp_path / "complete", quiet=True)
    cache = grown(records, home)
    assert (cache.mode, cache.held, len(cache)) == (mode, 0, 10)
    for positions in ([7, 0, 3, 3], [0], [4], range(10), torch.tensor([9, 1])):
        assert_same(cache.batch(positions), complete.batch(positions))
    assert_same(grown(records, home).batch(range(10)), complete.batch(range(10)))


def test_an_image_is_decoded_once(records: list[Record], home: Path, decoded: list[str]) -> None:
    cache = grown(records, home)
    cache.batch([2, 5])
    cache.batch([5, 2, 1])
    assert sorted(decoded) == ["1.png", "2.png", "5.png"]
    again = grown(records, home)
    assert again.held == 3
    again.batch([1, 2, 5])
    assert len(decoded) == 3


def test_a_complete_cache_is_used_where_there_is_one(records: list[Record], home: Path) -> None:
    complete = build(records, SIDE, folder=home, quiet=True)
    assert build(records, SIDE, mode="grow", folder=home, quiet=True).folder == complete.folder


def test_threads_share_it(records: list[Record], home: Path, whole: Batch) -> None:
    cache = grown(records, home)
    with ThreadPoolExecutor(4) as pool:
        batches = list(pool.map(cache.batch, [range(10)] * 8))
    for batch in batches:
        assert_same(batch, whole)


def test_two_processes_share_it(records: list[Record], home: Path, whole: Batch, decoded: list[str]) -> None:
    """What one adds, the other reads, although it opened the cache before."""
    one, other = grown(records, home), grown(records, home)
    one.batch(range(6))
    assert_same(other.batch(range(10)), whole)
    assert_same(one.batch(range(10)), whole)
    assert len(decoded) == 10
    assert len(list(home.glob("*-growing/*.images"))) == 2


@pytest.mark.parametrize("cut", [1, ROW.itemsize - 1, ROW.itemsize, 3 * ROW.itemsize + 7])
def test_rows_that_are_cut_short_are_images_that_are_not_there(
    records: list[Record], home: Path, whole: Batch, cut: int
) -> None:
    grown(records, home).batch(range(10))
    rows = file_of(home, "rows")
    rows.write_bytes(rows.read_bytes()[:-cut])
    cache = grown(records, home)
    assert cache.held == (10 * ROW.itemsize - cut) // ROW.itemsize
    assert_same(cache.batch(range(10)), whole)


def test_an_image_without_its_row_is_not_there(records: list[Record], home: Path, whole: Batch) -> None:
    grown(records, home).batch([0, 1])
    file_of(home, "rows").unlink()
    assert_same(grown(records, home).batch(range(10)), whole)


def test_images_that_are_cut_short_are_made_again(
    records: list[Record], home: Path, whole: Batch, capsys: pytest.CaptureFixture[str], decoded: list[str]
) -> None:
    grown(records, home).batch(range(10))
    images = file_of(home, "images")
    images.write_bytes(images.read_bytes()[: 7 * 3 * SIDE**2 + 5])
    assert_same(grown(records, home).batch(range(10)), whole)
    assert len(decoded) == 13
    assert capsys.readouterr().err.count("is damaged") == 3
    assert_same(grown(records, home).batch(range(10)), whole)
    assert len(decoded) == 13


@pytest.mark.parametrize("ending", ["images", "rows"])
def test_a_flipped_bit_changes_no_batch(records: list[Record], home: Path, whole: Batch, ending: str) -> None:
    grown(records, home).batch(range(10))
    file = file_of(home, ending)
    content = file.read_bytes()
    for bit in range(0, 8 * len(content), 8 * len(content) // 23):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        assert_same(grown(records, home).batch(range(10)), whole)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 99}', "[" * 9999])
def test_a_damaged_description_is_written_again(records: list[Record], home: Path, whole: Batch, text: str) -> None:
    grown(records, home).batch(range(5))
    about = file_of(home, "json")
    about.write_text(text)
    assert_same(grown(records, home).batch(range(10)), whole)
    assert json.loads(about.read_text())["images"] == 10


def test_where_the_disk_is_nearly_full_it_grows_no_more(
    records: list[Record],
    home: Path,
    whole: Batch,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cache = grown(records, home)
    cache.batch([0, 1])
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(2**40, 2**40, growing_cache.RESERVE + 100))
    assert_same(cache.batch(range(10)), whole)
    assert_same(cache.batch(range(10)), whole)
    assert cache.held == 2
    assert capsys.readouterr().err.count("grows no more") == 1


class FullDisk:
    """A file on a disk that has room for so many bytes, of which a write takes what fits."""

    def __init__(self, stream: object, room: int) -> None:
        self._stream, self._room = stream, room

    def tell(self) -> int:
        return self._stream.tell()

    def write(self, data: bytes) -> int:
        if self._room == 0:
            raise OSError(28, "No space left on device")
        count = min(len(data), self._room)
        self._room -= count
        return self._stream.write(data[:count])


@pytest.mark.parametrize("room", [0, 5000, 3 * SIDE**2])
def test_a_full_disk_ends_the_growth_and_not_the_run(
    records: list[Record], home: Path, whole: Batch, room: int, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = grown(records, home)
    cache.batch([3])
    cache._own._images = FullDisk(cache._own._images, room)
    assert_same(cache.batch(range(10)), whole)
    assert "grows no more" in capsys.readouterr().err
    assert cache.held == 1 + room // (3 * SIDE**2)
    assert_same(grown(records, home).batch(range(10)), whole)


def test_missing_images_are_one_error_at_the_beginning(records: list[Record], home: Path) -> None:
    records[1].path.unlink()
    records[4].path.unlink()
    with pytest.raises(UserError, match="2 of 10 images"):
        grown(records, home)


def test_a_broken_image_is_an_error_when_it_is_used(records: list[Record], home: Path) -> None:
    records[4].path.write_bytes(records[4].path.read_bytes()[:200])
    cache = grown(records, home)
    cache.batch([0, 1])
    with pytest.raises(UserError, match=r"4\.png.*boxwright check"):
        cache.batch([4])


def test_an_image_that_changes_during_the_run_is_an_error(records: list[Record], home: Path) -> None:
    cache = grown(records, home)
    samples.noise(40, 30, seed=99).save(records[4].path)
    os.utime(records[4].path, (1, 1))
    with pytest.raises(UserError, match=r"4\.png has changed since the run began"):
        cache.batch([4])


class KilledError(BaseException):
    """Stands for SIGKILL: nothing of ours catches it, and no write of ours is buffered."""


class Dying(FullDisk):
    """A file whose process is killed when so many bytes of it are written."""

    def write(self, data: bytes) -> int:
        count = super().write(data) if self._room else 0
        if count < len(data):
            raise KilledError
        return count


@pytest.mark.parametrize(("stream", "room"), [("images", 0), ("images", 7000), ("rows", 0), ("rows", 39), ("rows", 90)])
def test_killed_between_two_writes_or_in_one(
    records: list[Record], home: Path, whole: Batch, stream: str, room: int
) -> None:
    cache = grown(records, home)
    cache.batch([0])
    setattr(cache._own, f"_{stream}", Dying(getattr(cache._own, f"_{stream}"), room))
    with pytest.raises(KilledError):
        list(map(cache.batch, [[position] for position in range(1, 10)]))
    again = grown(records, home)
    assert again.held == 1 + room // (3 * SIDE**2 if stream == "images" else ROW.itemsize)
    assert_same(again.batch(range(10)), whole)
    assert_same(grown(records, home).batch(range(10)), whole)

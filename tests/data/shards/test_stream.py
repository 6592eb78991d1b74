"""Training from shards: the batches of a cache, every image once an epoch, the same again after a stop."""

import subprocess
import sys
from collections import Counter
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from boxwright.config import Augment, UserError
from boxwright.data.cache import build, open_batches
from boxwright.data.columns import FlatRecords
from boxwright.data.loader import eval_batches, train_batches
from boxwright.data.read import read
from boxwright.data.shards.pixels import PixelStore
from boxwright.data.shards.records import ShardRecords
from boxwright.data.shards.stream import ShardBatches
from boxwright.types import Batch
from helpers.sharded import sharded

SOME = Augment(scale=(0.5, 1.5), flip=0.5, colour=0.3, min_visible=0.2, views=1)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return sharded(tmp_path_factory.mktemp("stream"), images=32)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BOXWRIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def stream(places: tuple[Path, Path], keep: bool = True) -> ShardBatches:
    return ShardBatches(read(places[1]).splits["all"], 32, keep, quiet=True)


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(getattr(a, field.name), getattr(b, field.name)) for field in fields(Batch))


@pytest.mark.parametrize("keep", [True, False])
def test_batches_equal_those_of_a_cache(places, keep):
    source = stream(places, keep)
    cache = build(read(places[0]).splits["all"], 32, mode="pixels", quiet=True)
    for _ in range(2):  # decoded, then kept
        for one, other in zip(eval_batches(cache, 5), eval_batches(source, 5), strict=True):
            assert same(one, other)


def test_in_one_group_training_sees_what_it_sees_from_a_cache(places, monkeypatch):
    monkeypatch.setattr("boxwright.data.shards.stream.GROUP", 100)
    source, cache = stream(places), build(read(places[0]).splits["all"], 32, mode="pixels", quiet=True)
    batches = [train_batches(each, 5, SOME, seed=3, epoch=1) for each in (source, cache)]
    assert all(same(one, other) for one, other in zip(*batches, strict=True))


def order(source: ShardBatches, *, epoch: int = 0, seed: int = 0, first: int = 0, size: int = 4) -> list[int]:
    batches = train_batches(source, size, SOME, seed=seed, epoch=epoch, first=first)
    return [position for batch in batches for position in batch.index_B.tolist()]


def test_the_order_is_a_function_of_seed_and_epoch(places):
    source = stream(places)
    orders = [tuple(order(source, epoch=epoch, seed=seed)) for epoch, seed in ((0, 0), (1, 0), (0, 1), (0, 0))]
    assert orders[0] == orders[3]
    assert len(set(orders)) == 3
    assert all(sorted(each) == list(range(32)) for each in orders)


def test_few_shards_are_in_use_at_a_time(places, monkeypatch):
    monkeypatch.setattr("boxwright.data.shards.stream.GROUP", 2)
    source = stream(places)
    index, seen = source.records.archive.index, order(source)
    shards = [index.shard_of(position) for position in seen]
    assert sorted(seen) == list(range(32))
    assert len(index.shards) >= 6
    spans = {shard: np.flatnonzero(np.array(shards) == shard) for shard in set(shards)}
    assert max(span[-1] - span[0] for span in spans.values()) < 2 * max(shard.images for shard in index.shards)
    assert shards != sorted(shards)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_resumed_epoch_is_the_same_on_another_number_of_threads(places, monkeypatch, threads):
    whole = list(train_batches(stream(places), 4, SOME, seed=5, epoch=2))
    monkeypatch.setattr("boxwright.data.loader.THREADS", threads)
    rest = list(train_batches(stream(places), 4, SOME, seed=5, epoch=2, first=3))
    assert all(same(one, other) for one, other in zip(whole[3:], rest, strict=True))


READ_A_PART = """
import sys
from pathlib import Path
from boxwright.config import Augment
from boxwright.data.cache import open_batches
from boxwright.data.loader import train_batches
from boxwright.data.read import read
from boxwright.data.shards.fetch import ShardFiles
used, before = set(), ShardFiles.read
def noted(self, shard, first, length):
    used.add(shard)
    return before(self, shard, first, length)
ShardFiles.read = noted
source = open_batches(read(sys.argv[1]).splits["all"], 32, mode="jpeg", quiet=True)
for epoch in range(2):
    batches = train_batches(source, 2, Augment(views=1), seed=0, epoch=epoch, rank=int(sys.argv[2]), world=4)
    print(*(position for batch in batches for position in batch.index_B.tolist()), *sorted(used))
    used.clear()
"""


@pytest.mark.slow
def test_four_processes_read_every_image_once_an_epoch_each_from_its_own_shards(places):
    commands = [[sys.executable, "-c", READ_A_PART, str(places[1]), str(rank)] for rank in range(4)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    lines = [process.communicate(timeout=300)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    for epoch in range(2):
        words = [word for line in lines for word in line[epoch].split()]
        assert sorted(int(word) for word in words if word.isdigit()) == list(range(32))
    shards = Counter(word for line in lines for word in line[0].split() if not word.isdigit())
    assert len(shards) == len(stream(places).records.archive.index.shards) >= 6
    assert sum(shards.values()) <= len(shards) + 3  # two neighbours may share the shard at their border


def test_parts_cover_the_images_also_where_they_do_not_divide(places):
    source = stream(places)
    seen = [
        position
        for rank in range(3)
        for batch in train_batches(source, 3, SOME, seed=0, epoch=0, rank=rank, world=3)
        for position in batch.index_B.tolist()
    ]
    assert set(seen) == set(range(32))
    assert len(seen) == 36


# Decoded images that are kept


def test_kept_images_need_no_shards(places, monkeypatch):
    source = stream(places)
    first = source.batch([3, 9])
    monkeypatch.setattr("boxwright.data.shards.stream.open_image", None)
    assert same(source.batch([3, 9]), first)
    assert same(stream(places).batch([3, 9]), first)
    with pytest.raises(TypeError):
        source.batch([4])


def test_of_kept_images_no_name_is_read_and_no_record_is_made(places, monkeypatch):
    source = stream(places)
    before = list(eval_batches(source, 5))
    monkeypatch.setattr(ShardRecords, "_record", None)
    assert all(map(same, before, eval_batches(source, 5)))


def test_columns_are_those_of_the_records(places):
    records = read(places[1]).splits["all"]
    labels = np.arange(10)[::-1].copy()
    some = records.relabelled(labels).take(np.array([7, 3, 3, 20]))
    for field in fields(FlatRecords):
        one, other = (getattr(each, field.name) for each in (some.columns(), FlatRecords.of(list(some))))
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)


def test_a_damaged_kept_image_is_made_again(places, home):
    first = stream(places).batch([3])
    (file,) = (home / "shards").glob("*.pixels")
    with file.open("r+b") as pixels:
        pixels.seek(3 * 3 * 32**2)
        pixels.write(b"\xff\x01")
    assert same(stream(places).batch([3]), first)


def test_no_more_are_kept_than_the_limit_allows(places, home, monkeypatch):
    monkeypatch.setenv("BOXWRIGHT_CACHE_SIZE", str(2 * 10 * 3 * 32**2))
    source = stream(places)
    for batch in eval_batches(source, 8):
        assert len(batch) == 8
    (file,) = (home / "shards").glob("*.pixels")
    assert file.stat().st_size == 10 * 3 * 32**2
    cache = build(read(places[0]).splits["all"], 32, mode="pixels", quiet=True)
    assert same(source.batch(range(32)), cache.batch(range(32)))


def test_a_full_disk_ends_the_keeping_alone(places, monkeypatch):
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("boxwright.data.shards.pixels.os.pwrite", full)
    source = stream(places)
    assert same(source.batch([1]), source.batch([1]))


def test_a_limit_that_is_none(places, monkeypatch):
    monkeypatch.setenv("BOXWRIGHT_CACHE_SIZE", "lots")
    with pytest.raises(UserError, match="BOXWRIGHT_CACHE_SIZE must be a number of bytes such as"):
        stream(places)


def test_how_many_are_kept_is_printed(places, capsys):
    source = open_batches(read(places[1]).splits["all"], 32)
    assert isinstance(source, ShardBatches)
    assert isinstance(source._pixels, PixelStore)
    assert "Decoded images of 32 of 32 are kept" in capsys.readouterr().out


def test_several_splits_joined_are_cached(places):
    records = list(read(places[1]).splits["all"])
    cache = open_batches(records, 32, quiet=True)
    assert same(cache.batch([5]), stream(places).batch([5]))

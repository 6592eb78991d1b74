"""The cache is listed and cleared, and nothing else."""

import pytest

from boxwright.data.cache import build, open_batches
from boxwright.data.read import read
from boxwright.installation.cache import cache, stored
from helpers import datasets


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("BOXWRIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_nothing_is_there(home, capsys):
    assert cache() == cache(clear=True) == []
    assert not home.exists()
    assert f"0 bytes in {home}" in capsys.readouterr().out.replace("\n", " ")


def test_what_a_training_stores_is_listed_removed_and_made_again(home, tmp_path, capsys):
    records = next(iter(read(datasets.coco(tmp_path / "data")).splits.values()))
    build(records, 64)
    open_batches(records, 96, mode="grow", quiet=True, purpose="training")
    (home / "unpacked" / "a").mkdir(parents=True)
    assert sorted(part.what for part in cache()) == ["images at 64 px", "images at 96 px", "unpacked archives"]
    assert all(part.size > 0 for part in stored(home))
    cache(clear=True)
    assert stored(home) == []
    assert "removed" in capsys.readouterr().out
    assert len(build(records, 64)) == len(records)


def test_files_that_are_not_ours_stay(home):
    """The variable may name a folder with other things in it."""
    for name in ("photos", "1234-64-pixels-v1", "shards.txt"):
        (home / name).mkdir(parents=True)
    (home / "shards").mkdir()
    cache(clear=True)
    assert sorted(path.name for path in home.iterdir()) == ["1234-64-pixels-v1", "photos", "shards.txt"]

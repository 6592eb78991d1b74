"""A short version of `benchmarks/fuzz_files.py`."""

import random
from pathlib import Path

import pytest

from helpers.benchmark_scripts import benchmark


@pytest.fixture(scope="module")
def fuzz_files():
    return benchmark("fuzz_files")


@pytest.fixture(scope="module")
def files(fuzz_files, tmp_path_factory: pytest.TempPathFactory):
    return fuzz_files.Files(tmp_path_factory.mktemp("files"), image_size=64)


@pytest.mark.parametrize("kind", ["state", "checkpoint", "cache: images", "cache: rest"])
def test_no_flipped_bit_is_missed(fuzz_files, files, kind, monkeypatch):
    monkeypatch.setenv("BOXWRIGHT_CACHE", str(files.folder / "home"))
    counts = files.count_flips(kind, 12, random.Random(1))
    assert counts["noticed"] + counts["harmless"] == 12
    assert counts["noticed"]


def test_damaged_annotations_are_read_or_refused_in_one_line(fuzz_files, tmp_path: Path):
    counts = fuzz_files.damaged_data_sets(tmp_path, 3, 1)
    assert set(counts) == {"read", "refused"}


def test_a_flip_that_nothing_notices_is_missed(fuzz_files):
    assert fuzz_files.outcome(lambda: [1], [2], lambda: False) == "missed"
    assert fuzz_files.outcome(lambda: [1], [1], lambda: True) == "noticed"
    assert fuzz_files.outcome(lambda: [1], [1], lambda: False) == "harmless"
    assert fuzz_files.outcome(lambda: [1 / 0], [1], lambda: False) == "crash"

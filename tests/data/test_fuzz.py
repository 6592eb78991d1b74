"""A short run of `benchmarks/fuzz_data.py`: files that are no files, deep brackets, absurd values, damaged bytes."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import fuzz_data

from helpers import datasets as samples
from helpers import foreign_datasets as foreign


@pytest.mark.parametrize("make", [samples.coco, samples.yolo, foreign.via], ids=lambda make: make.__name__)
def test_nothing_but_a_clean_report_or_one_error(tmp_path, make):
    make(tmp_path)
    originals = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    failures = []
    for name, change in list(fuzz_data.all_cases(tmp_path, make.__name__, 30, 0))[::3]:
        file = change()
        outcome, _, seconds, detail = fuzz_data.outcome_of(tmp_path, name)
        failures += [(outcome, name, seconds, detail)] if outcome in fuzz_data.FAILURES else []
        fuzz_data.restore(tmp_path / file, originals[file])
    assert failures == []

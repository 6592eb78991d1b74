"""The validation split: disjoint, exact in size, balanced, the same every time."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boxwright.config import UserError
from boxwright.data.records import Record
from boxwright.data.split import split


def record(number, labels):
    n = len(labels)
    boxes = np.tile([1.0, 2, 3, 4], (n, 1))
    return Record(
        Path(f"{number:04}.jpg"), 10, 10, boxes, np.array(labels, dtype=np.int64), np.zeros(n, bool), number, ""
    )


LABELS = st.lists(st.lists(st.integers(0, 4), max_size=5), min_size=2, max_size=60)


@settings(max_examples=60, deadline=None)
@given(labels=LABELS, fraction=st.floats(0.01, 0.99), seed=st.integers(0, 9))
def test_disjoint_complete_exact_and_deterministic(labels, fraction, seed):
    records = [record(i, row) for i, row in enumerate(labels)]
    train, val = split(records, fraction, seed)
    ids = [r.image_id for r in train], [r.image_id for r in val]
    assert sorted(ids[0] + ids[1]) == list(range(len(records)))
    assert len(val) == min(max(round(fraction * len(records)), 1), len(records) - 1)
    assert ids[0] == sorted(ids[0])
    again = split(records[::-1], fraction, seed)
    assert [{r.image_id for r in part} for part in again] == [set(part) for part in ids]


def test_every_class_has_its_share():
    """Classes from common to rare, several an image, some images without objects."""
    rng = np.random.default_rng(0)
    labels = [rng.choice(6, size=rng.poisson(3), p=[0.5, 0.25, 0.15, 0.05, 0.03, 0.02]).tolist() for _ in range(500)]
    records = [record(i, row) for i, row in enumerate(labels)]
    train, val = split(records, 0.2)
    counts = np.array([np.bincount(np.concatenate([r.labels_N for r in part]), minlength=6) for part in (train, val)])
    shares = counts[1] / counts.sum(0)
    assert np.abs(shares - 0.2).max() < 0.03, shares
    background = [sum(len(r.labels_N) == 0 for r in part) for part in (train, val)]
    assert 0.1 < background[1] / sum(background) < 0.3


def test_seed_decides():
    records = [record(i, [i % 2]) for i in range(40)]
    first, second = ([r.image_id for r in split(records, 0.25, seed)[1]] for seed in (0, 1))
    assert first != second


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.2, 20])
def test_share_out_of_range(fraction):
    with pytest.raises(UserError, match=r"is not between 0 and 1; give 0\.2"):
        split([record(i, []) for i in range(4)], fraction)


def test_one_image_cannot_be_split():
    with pytest.raises(UserError, match="one image cannot be split"):
        split([record(0, [0])], 0.5)

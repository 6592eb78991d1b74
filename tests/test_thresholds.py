"""The thresholds of a model card: kept through JSON, one for each class, refused where they are none."""

import json

import numpy as np
import pytest

from boxwright.config import UserError
from boxwright.detections import Detections
from boxwright.thresholds import DEFAULT, Thresholds

STORED = Thresholds(0.3, {"cat": 0.25, "dog": 0.75}, "9 images")


def test_a_card_keeps_them():
    card = json.loads(json.dumps({"epoch": 3} | STORED.to_card()))
    assert Thresholds.from_card(card) == STORED


def test_a_class_without_its_own_takes_the_overall_one():
    assert STORED.of(("dog", "new", "cat")) == [0.75, 0.3, 0.25]
    assert Thresholds.from_card({"epoch": 3}).of(("dog", "cat")) == [DEFAULT, DEFAULT]


@pytest.mark.parametrize(
    "stored",
    [
        0.5,
        {},
        {"overall": "0.3", "classes": {}, "chosen on": "x"},
        {"overall": 1, "classes": {}, "chosen on": "x"},
        {"overall": 0.3, "classes": {"cat": -0.1}, "chosen on": "x"},
        {"overall": 0.3, "classes": {"cat": True}, "chosen on": "x"},
        {"overall": 0.3, "classes": ["cat"], "chosen on": "x"},
        {"overall": float("nan"), "classes": {}, "chosen on": "x"},
    ],
)
def test_a_card_with_others_is_refused(stored):
    with pytest.raises(UserError, match=r"model card are not numbers from 0 to under 1; .*--store true"):
        Thresholds.from_card({"thresholds": stored})


def test_they_are_described():
    assert STORED.describe(("cat", "dog")) == "score over cat 0.250, dog 0.750 (stored; chosen on 9 images)"
    assert STORED.describe(("cat",)) == "score over 0.250 (stored; chosen on 9 images)"
    assert "0.250 to 0.750, by class" in STORED.describe(("cat", "dog", *map(str, range(30))))
    assert "stores no threshold" in Thresholds().describe(("cat",))


def test_each_class_is_compared_with_its_own():
    scores = np.array([0.8, 0.7, 0.3, 0.2], np.float32)
    found = Detections(np.zeros((4, 4), np.float32), scores, np.array([1, 1, 0, 0]), ("a", "b"))
    kept = found.above([0.25, 0.75])
    assert kept.scores_N.tolist() == np.float32([0.8, 0.3]).tolist()
    assert len(found.above(0.25)) == 3
    assert len(found.above([0.3, 0.3])) == 2  # over it, not equal to it

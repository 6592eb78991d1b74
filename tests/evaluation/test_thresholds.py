"""F1 of each threshold is counted right, and the one that is chosen is good on other objects, too."""

import json

import numpy as np
import pytest

from boxwright.evaluation import thresholds as module
from boxwright.evaluation.coco import score
from boxwright.evaluation.confusion import confusion
from boxwright.evaluation.matches import Matches
from boxwright.evaluation.thresholds import LEAST_OBJECTS, Choice, Curve, ThresholdReport, point, too_few
from boxwright.thresholds import DEFAULT, Thresholds
from helpers.score_cases import NAMES, found, random_case, record


def matches(scores: list[float], right: list[bool], objects: int) -> Matches:
    """Of one class."""
    scores_D = np.float32(scores).astype(float)
    return Matches(scores_D, np.zeros(len(scores), np.int64), np.array(right, bool), np.array([objects]))


def drawn(random: np.random.Generator, objects: int) -> Matches:
    """Right detections with scores around 0.4, wrong ones with lower scores."""
    right, wrong = int((random.random(objects) < 0.95).sum()), random.poisson(4 * objects)
    scores = np.concatenate([random.beta(4, 6, right), random.beta(1.2, 8, wrong)])
    return matches(scores.tolist(), [True] * right + [False] * wrong, objects)


@pytest.mark.parametrize("seed", range(20))
def test_the_curve_is_what_counting_gives(seed: int):
    records, detections = random_case(seed)
    report = score(records, detections, NAMES).thresholds
    asked = np.append(np.random.default_rng(seed).random(9), [0.0, 0.5]).astype(np.float32)
    precision, recall, f1 = report.curve.at(asked)
    for n, threshold in enumerate(asked.tolist()):
        counted = report.matches.scores_D > threshold
        right, objects = report.matches.right_D[counted].sum(), report.matches.objects_K.sum()
        one = point(report.matches, [threshold] * len(NAMES))
        if counted.any():
            assert precision[n] == one.precision == right / counted.sum()
        if objects:
            assert recall[n] == one.recall == right / objects
            assert f1[n] == one.f1 == 2 * right / (counted.sum() + objects)


def test_the_points_are_those_of_the_confusion_matrix():
    """Without ignored objects and other classes nearby, both count the same detections."""
    truth = record([[0, 0, 50, 50], [100, 0, 150, 50], [200, 0, 250, 50]], [0, 0, 1])
    boxes = [[0, 0, 50, 50], [100, 0, 150, 50], [300, 0, 350, 50], [200, 0, 250, 50]]
    guessed = found(boxes, [0.9, 0.4, 0.45, 0.6], [0, 0, 0, 1])
    report = score([truth], [guessed], NAMES).thresholds
    limits = Thresholds(0.5, {"cat": 0.42, "dog": 0.7})
    row = report.row("cat", Choice(None, limits)).in_use
    matrix = confusion([truth], [guessed], NAMES, limits.of(NAMES))
    assert (row.precision, row.recall) == (matrix[0, 0] / matrix[:, 0].sum(), matrix[0, 0] / matrix[0].sum())
    assert matrix[1].tolist() == [0, 0, 0, 0, 1]  # the dog's detection is under its threshold


def test_the_middle_of_the_plateau_is_chosen():
    perfect = matches([0.9] * 30 + [0.1] * 30, [True] * 30 + [False] * 30, 30)
    assert Curve.of(perfect).best() == pytest.approx(0.5, abs=0.01)
    assert Curve.of(matches([0.9] * 30, [True] * 30, 30)).best() == pytest.approx(0.45)


def test_low_scores_have_a_low_threshold_and_saturated_ones_stay_above_theirs():
    low = Curve.of(matches([0.004] * 30 + [0.002] * 90, [True] * 30 + [False] * 90, 30)).best()
    assert 0.002 <= low < 0.004
    top = float(np.nextafter(np.float32(1), np.float32(0)))
    below = float(np.nextafter(np.float32(top), np.float32(0)))
    sure = Curve.of(matches([top] * 30 + [below] * 90, [True] * 30 + [False] * 90, 30)).best()
    assert below <= np.float32(sure) < top


def test_detections_with_the_same_score_stay_together():
    curve = Curve.of(matches([0.5] * 4 + [0.2], [True, False, True, False, True], 3))
    assert curve.detections_P.tolist() == [4, 5]
    assert curve.right_P.tolist() == [2, 3]


def test_it_does_better_on_other_objects_than_the_best_score(monkeypatch: pytest.MonkeyPatch):
    random = np.random.default_rng(0)
    rest, samples = Curve.of(drawn(random, 5000)), [Curve.of(drawn(random, 40)) for _ in range(60)]

    def lost() -> float:
        return float(np.mean([rest.f1().max() - rest.at(np.array([one.best()]))[2] for one in samples]))

    chosen = lost()
    monkeypatch.setattr(module, "ERRORS", 0)
    assert chosen < 0.7 * lost()
    assert chosen < 0.01


def test_the_greatest_recall_at_a_precision():
    curve = Curve.of(matches([0.9, 0.8, 0.7, 0.6, 0.5], [True, False, True, True, True], 5))
    assert curve.recall_at(0.8) == pytest.approx(4 / 5)  # further down it is reached again
    assert curve.recall_at(1.0) == pytest.approx(1 / 5)
    assert Curve.of(matches([0.9], [False], 5)).recall_at(0.8) == 0
    assert Curve.of(matches([0.9], [False], 0)).recall_at(0.8) == -1


def several(counts: list[int], scores: list[float]) -> ThresholdReport:
    """So many objects of each class, each found with the score of its class."""
    labels = np.repeat(np.arange(len(counts)), counts)
    right = np.ones(len(labels), bool)
    scores_D = np.float32(scores).astype(float)[labels]
    return ThresholdReport(NAMES[: len(counts)], Matches(scores_D, labels, right, np.array(counts)))


def test_a_class_with_too_few_objects_takes_the_overall_threshold():
    chosen = several([LEAST_OBJECTS, LEAST_OBJECTS - 1, 0], [0.6, 0.2, 0.9]).choose("x")
    assert chosen is not None
    assert set(chosen.classes) == {"cat"}
    assert chosen.of(("dog", "gnu")) == [chosen.overall] * 2
    assert too_few(NAMES[:3], [LEAST_OBJECTS, 3, 0]) == [
        "under 20 objects to choose on of dog, gnu (of gnu none): they take the score threshold of all classes together"
    ]
    assert too_few(NAMES[:2], [LEAST_OBJECTS] * 2) == []


def test_too_few_objects_or_nothing_right_give_no_threshold():
    assert several([9, 10], [0.6, 0.2]).choose("x") is None
    assert too_few(NAMES[:2], [9, 10]) == ["too few objects to choose a score threshold on: 19, and it takes 20"]
    assert ThresholdReport(("cat",), matches([0.9], [False], 50)).choose("x") is None
    assert ThresholdReport(("cat",), matches([], [], 50)).choose("x") is None


def test_objects_of_classes_that_the_detector_does_not_know_change_nothing():
    random = np.random.default_rng(1)
    cats = drawn(random, 200)
    both = Matches(cats.scores_D, cats.labels_D, cats.right_D, np.array([200, 1000]))
    alone, beside = ThresholdReport(("cat",), cats), ThresholdReport(("cat", "stranger"), both)
    assert beside.choose("x", ["cat"]) == alone.choose("x")
    assert beside.choose("x") != alone.choose("x")


def test_ignored_objects_do_not_count():
    truth = record([[0, 0, 50, 50], [100, 100, 200, 200]], [0, 0], [False, True])
    guessed = found([[0, 0, 50, 50], [110, 110, 150, 150], [300, 0, 350, 50]], [0.75, 0.95, 0.25], [0, 0, 0])
    report = score([truth], [guessed], NAMES).thresholds
    assert report.matches.scores_D.tolist() == [0.75, 0.25]
    assert report.matches.objects_K.tolist() == [1, 0, 0, 0]


def test_everything_fits_into_json_and_into_a_table():
    report = several([40, 30], [0.6, 0.2])
    choice = Choice(report.choose("x"), Thresholds())
    stored = json.loads(json.dumps(report.to_dict(choice)))
    assert stored["per_class"]["dog"]["best"]["recall"] == 1
    assert stored["per_class"]["dog"]["in_use"] == {"threshold": DEFAULT, "precision": -1, "recall": 0, "f1": 0}
    assert stored["each_its_own"]["best"]["threshold"] is None
    assert stored["overall"]["recall_at_precision"] == 1
    assert report.table(choice).row_count == 4
    assert "1.000 of the objects can be found" in report.summary()

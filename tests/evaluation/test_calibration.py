"""Scores are compared with the precision of the matches of AP50."""

import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from boxwright.evaluation import coco
from boxwright.evaluation.calibration import BINS, FLOOR, calibrate
from helpers.score_cases import NAMES, found, random_case, record


def matches(records: list, detections: list) -> list[tuple[float, bool]]:
    """Score of each detection that counts, and whether it matches an object at IoU 0.5, by pycocotools."""
    content, annotated, detected = coco._ground_truth(records, NAMES), COCO(), COCO()
    annotated.dataset, detected.dataset = content, content | {"annotations": coco._results(detections, NAMES)}
    annotated.createIndex()
    detected.createIndex()
    judge = COCOeval(annotated, detected, "bbox")
    judge.params.maxDets = [1000]
    judge.evaluate()
    whole = [row for row in judge.evalImgs if row is not None and row["aRng"] == [0, 1e10]]
    return [
        (score, bool(match))
        for row in whole
        for score, match, ignored in zip(row["dtScores"], row["dtMatches"][0], row["dtIgnore"][0], strict=True)
        if score >= FLOOR and not ignored
    ]


@pytest.mark.parametrize("seed", range(60))
def test_the_matches_are_pycocotools(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    records, detections = random_case(seed)
    counted = matches(records, detections)
    scores, right = (np.array(column, float) for column in zip(*counted, strict=True)) if counted else ([], [])
    report = coco.score(records, detections, NAMES)
    measured = report.calibration
    for number in range(BINS):
        inside = [i for i, score in enumerate(scores) if min(int(score * BINS + 1e-5), BINS - 1) == number]
        assert measured.detections_M[number] == len(inside)
        if inside:
            assert measured.scores_M[number] == pytest.approx(np.mean(scores[inside]))
            assert measured.precision_M[number] == pytest.approx(np.mean(right[inside]))


def test_the_error_is_the_weighted_difference_of_score_and_precision() -> None:
    scores_D = np.array([0.95, 0.95, 0.95, 0.95, 0.25, 1.0])
    measured = calibrate(scores_D, np.array([True, True, True, False, False, True]))
    last = abs((4 * 0.95 + 1.0) / 5 - 4 / 5)
    assert measured.ece == pytest.approx((5 * last + 1 * 0.25) / 6)
    assert "mean score of 0.842 and a precision of 0.667" in measured.summary()
    assert "overconfident" in measured.summary()


def test_scores_that_say_how_often_they_are_right_have_no_error() -> None:
    draw = np.random.default_rng(0)
    scores_D = draw.random(100_000)
    right_D = draw.random(100_000) < scores_D
    assert calibrate(scores_D, right_D).ece < 0.01
    assert calibrate(scores_D**0.5, right_D).ece == pytest.approx(2 / 3 - 1 / 2, abs=0.01)


def test_scores_close_to_zero_do_not_count() -> None:
    scores_D, right_D = np.array([0.9, 0.0499, 0.01]), np.array([True, True, False])
    assert calibrate(scores_D, right_D).ece == pytest.approx(0.1)
    nothing = calibrate(scores_D[1:], right_D[1:])
    assert nothing.ece == -1
    assert "no detection has a score of 0.05 or more" in nothing.summary()


def test_a_detection_on_an_ignored_object_does_not_count() -> None:
    truth = record([[0, 0, 50, 50], [100, 100, 200, 200]], [0, 0], [False, True])
    guessed = found([[0, 0, 50, 50], [110, 110, 150, 150], [300, 0, 350, 50]], [0.75, 0.95, 0.25], [0, 0, 0])
    report = coco.score([truth], [guessed], NAMES)
    assert report.calibration.detections_M.sum() == 2
    assert report.ece == pytest.approx(0.25)


def test_everything_fits_into_json() -> None:
    stored = json.loads(json.dumps(coco.score(*random_case(3), NAMES).to_dict()))["calibration"]
    assert [row["from"] for row in stored["bins"]] == pytest.approx([FLOOR, *np.arange(1, BINS) / BINS])

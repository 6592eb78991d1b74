"""The numbers are pycocotools', and so is the print-out."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from boxwright.data.records import Record
from boxwright.evaluation.coco import STAT_NAMES, Report, score
from boxwright.types import Detections
from helpers.score_cases import NAMES, found, random_case, record


def oracle(records: list[Record], detections: list[Detections]) -> tuple[COCOeval, str]:
    """pycocotools' answer and what it prints."""
    truth = COCO()
    rows = [
        {"image_id": i, "category_id": int(k) + 1, "bbox": _xywh(b), "area": _area(b), "iscrowd": int(c)}
        for i, r in enumerate(records, 1)
        for b, k, c in zip(r.boxes_N4, r.labels_N, r.ignore_N, strict=True)
    ]
    truth.dataset = {
        "images": [{"id": i} for i in range(1, len(records) + 1)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(NAMES, 1)],
        "annotations": [{"id": n, **row} for n, row in enumerate(rows, 1)],
    }
    results = [
        {"image_id": i, "category_id": int(k) + 1, "bbox": _xywh(b.astype(float)), "score": float(s)}
        for i, d in enumerate(detections, 1)
        for b, k, s in zip(d.boxes_N4, d.labels_N, d.scores_N, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(results), "bbox")
        judge.evaluate()
        judge.accumulate()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        judge.summarize()
    return judge, printed.getvalue()


def _xywh(box: np.ndarray) -> list[float]:
    return [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])]


def _area(box: np.ndarray) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


@pytest.mark.parametrize("seed", range(40))
def test_equals_pycocotools(seed: int) -> None:
    records, detections = random_case(seed)
    if not any(len(d) for d in detections):
        pytest.skip("pycocotools takes no empty results")
    report = score(records, detections, NAMES)
    judge, printed = oracle(records, detections)
    np.testing.assert_allclose(report.stats, judge.stats, atol=1e-6)
    np.testing.assert_allclose(report.precision_TRK, judge.eval["precision"][..., 0, 2], atol=1e-6)
    assert report.summary() + "\n" == printed


def test_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    score(*random_case(3), NAMES)
    assert capfd.readouterr() == ("", "")


def test_per_class_counts_and_averages() -> None:
    records = [record([[0, 0, 50, 50], [60, 60, 90, 90]], [0, 1]), record([[0, 0, 50, 50]], [0]), record([], [])]
    detections = [found([[0, 0, 50, 50]], [0.9], [0]), found([[0, 0, 50, 50]], [0.8], [0]), found([], [], [])]
    report = score(records, detections, NAMES)
    assert report.per_class["cat"] == {"ap": 1.0, "ap50": 1.0, "images": 2, "boxes": 2}
    assert report.per_class["dog"] == {"ap": 0.0, "ap50": 0.0, "images": 1, "boxes": 1}
    assert report.per_class["gnu"] == {"ap": -1.0, "ap50": -1.0, "images": 0, "boxes": 0}
    assert report.ap == report.ap50 == pytest.approx(0.5)
    assert report.images == 3


def test_a_detection_on_an_ignored_object_is_no_mistake() -> None:
    truth = record([[0, 0, 50, 50], [100, 100, 200, 200]], [0, 0], [False, True])
    on_it = found([[0, 0, 50, 50], [110, 110, 150, 150], [150, 150, 190, 190]], [0.5, 0.9, 0.8], [0, 0, 0])
    beside_it = found([[0, 0, 50, 50], [210, 210, 250, 250]], [0.5, 0.9], [0, 0])
    assert score([truth], [on_it], NAMES).ap == pytest.approx(1.0)
    assert score([truth], [beside_it], NAMES).ap < 0.6
    assert score([truth], [on_it], NAMES).per_class["cat"]["boxes"] == 1


def test_classes_are_matched_by_name() -> None:
    truth = record([[0, 0, 50, 50], [60, 60, 90, 90]], [0, 1])
    guessed = found(
        [[60, 60, 90, 90], [0, 0, 50, 50], [0, 0, 9, 9]], [0.9, 0.8, 0.7], [0, 1, 2], ("dog", "cat", "unicorn")
    )
    assert score([truth], [guessed], NAMES).ap == pytest.approx(1.0)
    strangers = found([[0, 0, 50, 50]], [0.9], [0], ("unicorn",))
    assert score([truth], [strangers], NAMES).ap == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_detections_of_other_classes_change_nothing(seed: int) -> None:
    records, detections = random_case(seed)
    strange = [
        Detections(
            np.concatenate([d.boxes_N4[:1], d.boxes_N4]),
            np.concatenate([d.scores_N[:1], d.scores_N]),
            np.concatenate([0 * d.labels_N[:1], d.labels_N + 1]),
            ("unicorn", *NAMES),
        )
        for d in detections
    ]
    assert score(records, strange, NAMES).stats == score(records, detections, NAMES).stats


def test_boxes_without_area_are_no_objects() -> None:
    truth = record([[0, 0, 50, 50], [80, 80, 70, 70], [5, 5, 5, 9], [np.nan, 0, 9, 9]], [0, 0, 0, 0])
    report = score([truth], [found([[0, 0, 50, 50]], [0.9], [0])], NAMES)
    assert report.ap == pytest.approx(1.0)
    assert report.per_class["cat"]["boxes"] == 1


@pytest.mark.parametrize(
    ("records", "detections", "ap"),
    [
        ([], [], -1.0),
        ([record([], [])], [found([], [], [])], -1.0),
        ([record([], [])], [found([[0, 0, 9, 9]], [0.9], [1])], -1.0),
        ([record([[0, 0, 9, 9]], [0], [True])], [found([[0, 0, 9, 9]], [0.9], [0])], -1.0),
        ([record([[0, 0, 9, 9]], [0])], [found([], [], [])], 0.0),
    ],
)
def test_nothing_to_find_and_nothing_found(records: list, detections: list, ap: float) -> None:
    report = score(records, detections, NAMES)
    assert report.ap == ap
    assert len(report.stats) == len(STAT_NAMES) == 12
    if ap < 0:
        assert report.summary().count("-1.000") == 12
        assert "-" in _cells(report)
        assert "-1" not in " ".join(_cells(report))


def test_table_shows_a_dash_for_absent_classes() -> None:
    cells = _cells(score([record([[0, 0, 9, 9]], [0])], [found([[0, 0, 9, 9]], [0.9], [0])], NAMES))
    assert cells[:5] == ["cat", "1.000", "1.000", "1", "1"]
    assert cells[5:10] == ["dog", "-", "-", "0", "0"]
    assert cells[-5:] == ["all", "1.000", "1.000", "1", "1"]


def _cells(report: Report) -> list[str]:
    table = report.table()
    return [str(cell) for row in zip(*(column.cells for column in table.columns), strict=True) for cell in row]

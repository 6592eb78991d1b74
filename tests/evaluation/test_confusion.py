"""Each object and each detection is counted once, in the right cell."""

import csv
import io

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from boxwright.evaluation.confusion import confusion, to_csv
from helpers.score_cases import NAMES, found, random_case, record

A, B, C = [0, 0, 50, 50], [100, 100, 180, 180], [200, 10, 260, 90]


def cells(*filled: tuple[int, int, int]) -> np.ndarray:
    matrix = np.zeros((5, 5), np.int64)
    for row, column, count in filled:
        matrix[row, column] = count
    return matrix


def test_hit_mix_up_miss_and_false_alarm() -> None:
    truth = record([A, B, C], [0, 1, 2])
    detections = found([A, B, [300, 200, 350, 250]], [0.9, 0.8, 0.7], [0, 3, 1])
    np.testing.assert_array_equal(
        confusion([truth], [detections], NAMES), cells((0, 0, 1), (1, 3, 1), (2, 4, 1), (4, 1, 1))
    )


def test_one_to_one_by_score() -> None:
    truth = record([A], [0])
    detections = found([A, A], [0.6, 0.9], [0, 1])  # the better one is wrong and takes the object
    np.testing.assert_array_equal(confusion([truth], [detections], NAMES), cells((0, 1, 1), (4, 0, 1)))


def test_own_class_first_then_overlap() -> None:
    truth = record([[0, 0, 50, 50], [2, 2, 50, 50]], [1, 0])
    detections = found([[0, 0, 50, 50], [0, 0, 50, 50]], [0.9, 0.8], [0, 1])
    np.testing.assert_array_equal(confusion([truth], [detections], NAMES), cells((0, 0, 1), (1, 1, 1)))


def test_threshold_and_iou_limits() -> None:
    truth = record([[0, 0, 100, 100]], [0])
    half, less = [0, 0, 100, 50], [0, 0, 100, 49]
    assert confusion([truth], [found([half], [0.9], [0])], NAMES)[0, 0] == 1
    assert confusion([truth], [found([less], [0.9], [0])], NAMES)[0, 4] == 1
    assert confusion([truth], [found([half], [0.5], [0])], NAMES)[0, 4] == 1  # 0.5 is not over 0.5


def test_ignored_objects_swallow_detections() -> None:
    truth = record([[100, 100, 200, 200]], [0], [True])
    detections = found([[110, 110, 130, 130], [150, 150, 190, 190], [300, 0, 340, 40]], [0.9, 0.8, 0.7], [0, 0, 0])
    np.testing.assert_array_equal(confusion([truth], [detections], NAMES), cells((4, 0, 1)))
    other_class = found([[110, 110, 130, 130]], [0.9], [1])
    np.testing.assert_array_equal(confusion([truth], [other_class], NAMES), cells((4, 1, 1)))


def test_unknown_classes_are_left_out() -> None:
    detections = found([A, B], [0.9, 0.8], [0, 1], ("unicorn", "dog"))
    np.testing.assert_array_equal(confusion([record([B], [1])], [detections], NAMES), cells((1, 1, 1)))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000))
def test_rows_count_objects_and_columns_detections(seed: int) -> None:
    records, detections = random_case(seed)
    matrix = confusion(records, detections, NAMES, threshold=0.3)
    for k in range(len(NAMES)):
        assert matrix[k].sum() == sum(int(((r.labels_N == k) & ~r.ignore_N).sum()) for r in records)
        assert matrix[:, k].sum() <= sum(int((d.above(0.3).labels_N == k).sum()) for d in detections)
        if not any(r.ignore_N.any() for r in records):
            assert matrix[:, k].sum() == sum(int((d.above(0.3).labels_N == k).sum()) for d in detections)
    assert matrix[-1, -1] == 0


def test_csv_round_trip() -> None:
    matrix = np.arange(9).reshape(3, 3)
    rows = list(csv.reader(io.StringIO(to_csv(matrix, ("a, b", "c")))))
    assert rows[0] == ["true \\ predicted", "a, b", "c", "background"]
    assert [row[0] for row in rows[1:]] == ["a, b", "c", "background"]
    np.testing.assert_array_equal(np.array([row[1:] for row in rows[1:]], int), matrix)

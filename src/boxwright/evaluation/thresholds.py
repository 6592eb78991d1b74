"""Precision and recall over the score, and the score above which objects should count.

The F1 of a threshold is the harmonic mean of the precision of the detections above it and of their recall, at IoU 0.5
with the matches of AP50. The best one is partly chance: F1 goes up and down with every detection, and between two
detections any score is as good. So what is chosen is the middle of the plateau: of all scores around the best one at
which F1 is not clearly worse, by no more than `ERRORS` standard errors. `benchmarks/thresholds.py` compares it with
the best score itself and with wider and narrower plateaus: it loses the least, about half. A class with fewer than
`LEAST_OBJECTS` objects, which could lose more than a point of F1, takes the threshold of all classes together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from boxwright.classes import enumerate_classes
from boxwright.evaluation.matches import IOU, Matches
from boxwright.thresholds import Thresholds

ERRORS = 2.0  # standard errors of F1 that the plateau may lie below its best
LEAST_OBJECTS = 20  # to choose a threshold on
PRECISION = 0.8  # at which the greatest recall is stated
ONE, EACH = "all, one threshold", "all, each its own"  # the last two lines of a table
_MOST_CLASSES = 12  # named in a line


@dataclass(frozen=True)
class Point:
    """What a threshold gives. Fields are the keys in metrics.json.

    Attributes:
        threshold: detections with a score over this count; None where several classes have their own.
        precision: the fraction of them that is right; -1 if there are none.
        recall: the fraction of objects that they find; -1 if there are none.
        f1: 2 right detections / (detections + objects); -1 if there are neither.
    """

    threshold: float | None
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, eq=False)
class Curve:
    """Precision and recall of P thresholds, from high to low: each that separates two scores.

    Attributes:
        upper_P, lower_P: any threshold from `lower` up to, but not including, `upper` gives these detections.
        right_P: detections above it that are right.
        detections_P: all detections above it.
        objects: that are to be found.
    """

    upper_P: np.ndarray
    lower_P: np.ndarray
    right_P: np.ndarray
    detections_P: np.ndarray
    objects: int

    @classmethod
    def of(cls, matches: Matches) -> Curve:
        """The curve of these detections, whatever their classes."""
        order_D = np.argsort(-matches.scores_D, kind="stable")
        scores_D, right_D = matches.scores_D[order_D], matches.right_D[order_D].cumsum()
        last_P = np.flatnonzero(np.diff(scores_D, append=-1))  # of those with the same score
        lower_P = np.append(scores_D[last_P[1:]], 0.0)[: len(last_P)]
        return cls(scores_D[last_P], lower_P, right_D[last_P], last_P + 1, int(matches.objects_K.sum()))

    def precision(self) -> np.ndarray:
        """(P,), in [0, 1]."""
        return self.right_P / self.detections_P

    def f1(self) -> np.ndarray:
        """(P,), in [0, 1]."""
        return 2 * self.right_P / (self.detections_P + self.objects)

    def best(self) -> float | None:
        """The middle of the plateau around the best F1; of several plateaus, the widest. None if nothing is right."""
        f1_P = self.f1()
        best = f1_P.max(initial=0)
        if not best:
            return None
        plateaus = _runs(f1_P >= best - ERRORS * _standard_error(best, self.objects))
        tops = [(first, last) for first, last in plateaus if f1_P[first : last + 1].max() == best]
        spans = [(self.lower_P[last], self.upper_P[first]) for first, last in tops]
        return _between(*max(spans, key=lambda span: span[1] - span[0]))

    def recall_at(self, precision: float) -> float:
        """The greatest recall of a threshold with this precision or more; 0 if there is none, -1 without objects."""
        if not self.objects:
            return -1.0
        return float(self.right_P[self.precision() >= precision].max(initial=0) / self.objects)

    def at(self, scores_S: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Precision, recall and F1 of the detections with a score over each of these, (S,); without any, NaN, 0, 0."""
        position_S = len(self.upper_P) - np.searchsorted(self.upper_P[::-1], scores_S, side="right")
        recall_P = self.right_P / max(self.objects, 1)
        precision_S = np.append(np.nan, self.precision())[position_S]
        return precision_S, np.append(0.0, recall_P)[position_S], np.append(0.0, self.f1())[position_S]


def _standard_error(share: float, count: int) -> float:
    """That of a share of so many; a share of nearly 0 or 1 is not certain, either."""
    return math.sqrt(max(share * (1 - share), 0.25 / count) / count)


def _between(low: float, high: float) -> float:
    """A number from `low` up to, but not including, `high`, with few digits: about their middle."""
    rounded = (round(float(low + high) / 2, digits) for digits in (3, 6))
    return next((value for value in rounded if low <= np.float32(value) < high), float(low))


def _runs(high_P: np.ndarray) -> list[tuple[int, int]]:
    """First and last position of each stretch of True."""
    edges = np.flatnonzero(np.diff(high_P, prepend=False, append=False))
    return [(int(first), int(end) - 1) for first, end in edges.reshape(-1, 2)]


class Choice(NamedTuple):
    """Thresholds to compare.

    Attributes:
        best: chosen on the images of this evaluation; None if they allow no choice.
        in_use: those that `predict` uses.
    """

    best: Thresholds | None
    in_use: Thresholds


@dataclass(frozen=True)
class ThresholdRow:
    """What one class has, or all together. Fields are the keys in metrics.json.

    Attributes:
        best: at the threshold chosen on these images; None if none was.
        in_use: at the threshold that `predict` uses.
        recall_at_precision: the greatest recall with a precision of `PRECISION` or more, whatever the threshold; 0 if
            no threshold has it, -1 without objects.
    """

    best: Point | None
    in_use: Point
    recall_at_precision: float


@dataclass(frozen=True, eq=False)
class ThresholdReport:
    """How precision, recall and F1 of a detector depend on the score.

    Attributes:
        names: the classes.
        matches: its detections.
    """

    names: tuple[str, ...]
    matches: Matches

    @cached_property
    def curve(self) -> Curve:
        """That of all classes together."""
        return Curve.of(self.matches)

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """That of each class."""
        return {name: Curve.of(self.matches.of_class(k)) for k, name in enumerate(self.names)}

    def choose(self, chosen_on: str, known: Sequence[str] | None = None) -> Thresholds | None:
        """The thresholds of best F1; None if there are too few objects, or no detection is right.

        A class with too few objects, or without any right detection, gets none of its own.

        Args:
            chosen_on: the images, in words.
            known: the classes that the detector knows, by default all; objects of others don't count.
        """
        counted_K = np.isin(self.names, self.names if known is None else known)
        overall = _best(replace(self.curve, objects=int(self.matches.objects_K[counted_K].sum())))
        if overall is None:
            return None
        best = {name: _best(curve) for name, curve in self.curves.items()}
        return Thresholds(overall, {name: value for name, value in best.items() if value is not None}, chosen_on)

    def row(self, name: str, choice: Choice) -> ThresholdRow:
        """What a class has at its threshold."""
        own = self.matches.of_class(self.names.index(name))
        best = None if choice.best is None else point(own, choice.best.of([name]))
        return ThresholdRow(best, point(own, choice.in_use.of([name])), self.curves[name].recall_at(PRECISION))

    def overall(self, choice: Choice, each: bool = False) -> ThresholdRow:
        """What all classes have together: at one threshold for all, or `each` at its own."""

        def together(thresholds: Thresholds) -> Point:
            return point(self.matches, (thresholds if each else Thresholds(thresholds.overall)).of(self.names))

        best = None if choice.best is None else together(choice.best)
        return ThresholdRow(best, together(choice.in_use), self.curve.recall_at(PRECISION))

    def to_dict(self, choice: Choice) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "iou": IOU,
            "precision": PRECISION,
            "best": None if choice.best is None else choice.best.to_dict(),
            "in_use": choice.in_use.to_dict(),
            "overall": asdict(self.overall(choice)),
            "each_its_own": asdict(self.overall(choice, each=True)),
            "per_class": {name: asdict(self.row(name, choice)) for name in self.names},
        }

    def rows(self, choice: Choice) -> list[tuple[str, ThresholdRow]]:
        """The lines of a table: each class, then all together."""
        classes = [(name, self.row(name, choice)) for name in self.names]
        return [*classes, (ONE, self.overall(choice)), (EACH, self.overall(choice, each=True))]

    def table(self, choice: Choice) -> Table:
        """`rows` for rich: the best threshold and what it gives, then the one in use."""
        table = Table("class", box=None, header_style="bold", pad_edge=False)
        for column in ("best", "F1", "prec.", "recall", "in use", "F1", "prec.", "recall"):
            table.add_column(column, justify="right")
        for place, (name, row) in enumerate(self.rows(choice), 1):
            table.add_row(name, *point_texts(row.best), *point_texts(row.in_use), end_section=place == len(self.names))
        return table

    def summary(self) -> str:
        """One line: how much can be found with a precision of `PRECISION` or more."""
        recalls = [(name, curve.recall_at(PRECISION)) for name, curve in self.curves.items() if curve.objects]
        if not recalls:
            return "Score thresholds: undefined, there is no object to find"
        by_class = ", ".join(f"{name} {recall:.3f}" for name, recall in recalls[:_MOST_CLASSES])
        more = " ..." if len(recalls) > _MOST_CLASSES else ""
        found = f"{self.curve.recall_at(PRECISION):.3f} of the objects"
        return f"With a precision of {PRECISION:.2f} or more, {found} can be found at IoU {IOU:.2f} ({by_class}{more})"


def point_texts(one: Point | None) -> list[str]:
    """Threshold, F1, precision and recall for a table; ``-`` where there is none."""
    if one is None:
        return ["-"] * 4
    numbers = [f"{value:.3f}" if value >= 0 else "-" for value in (one.f1, one.precision, one.recall)]
    return ["-" if one.threshold is None else f"{one.threshold:.3f}", *numbers]


def point(matches: Matches, thresholds_K: Sequence[float]) -> Point:
    """Precision, recall and F1 of the detections over the threshold of their class."""
    counted_D = matches.scores_D > np.asarray(thresholds_K, np.float32)[matches.labels_D]
    right, detections, objects = matches.right_D[counted_D].sum(), counted_D.sum(), matches.objects_K.sum()
    return Point(
        threshold=float(thresholds_K[0]) if len(set(thresholds_K)) == 1 else None,
        precision=float(right / detections) if detections else -1.0,
        recall=float(right / objects) if objects else -1.0,
        f1=float(2 * right / (detections + objects)) if detections + objects else -1.0,
    )


def too_few(names: Sequence[str], objects: Sequence[int]) -> list[str]:
    """A sentence for classes of which there are too few objects to choose a threshold on; none if there are enough.

    Args:
        names: the classes.
        objects: how many there are of each in the images to choose on.
    """
    total, few = sum(objects), [name for name, count in zip(names, objects, strict=True) if count < LEAST_OBJECTS]
    if total < LEAST_OBJECTS:
        return [f"too few objects to choose a score threshold on: {total}, and it takes {LEAST_OBJECTS}"]
    if not few:
        return []
    never = [name for name, count in zip(names, objects, strict=True) if not count]
    of_these = f" (of {enumerate_classes(never)} none)" if never else ""
    fewer = f"under {LEAST_OBJECTS} objects to choose on of {enumerate_classes(few)}{of_these}"
    return [f"{fewer}: they take the score threshold of all classes together"]


def _best(curve: Curve) -> float | None:
    """The chosen threshold; None where there are too few objects, or nothing is right."""
    return curve.best() if curve.objects >= LEAST_OBJECTS else None

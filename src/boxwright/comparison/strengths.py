"""What each detector of a comparison is best at, by its numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from boxwright.comparison.row import Row

CLEARLY = 0.05  # a lead counts from this fraction of the next best number
CLEAR_ERROR = 0.02  # and a calibration error from this difference: small ones vary much, relatively


class _Quality(NamedTuple):
    """A number in which detectors differ.

    Attributes:
        text: what the leading detector is, with a place for the number.
        value: the number as it is shown; negative where it is unknown.
        most: whether the highest leads, else the lowest.
        lead: the least difference that counts, from the number of the next best.
    """

    text: str
    value: Callable[[Row], float]
    most: bool = False
    lead: Callable[[float], float] = lambda number: CLEARLY * number


_QUALITIES = (
    _Quality("the most accurate (AP {:.3f})", lambda row: row.ap, most=True),
    _Quality("the best on small objects (AP {:.3f})", lambda row: row.stats.get("APs", -1), most=True),
    _Quality("the best on large objects (AP {:.3f})", lambda row: row.stats.get("APl", -1), most=True),
    _Quality("the best calibrated (ECE {:.3f})", lambda row: row.stats.get("ECE", -1), lead=lambda _: CLEAR_ERROR),
    _Quality("the fastest ({:.1f} ms per image)", lambda row: row.latency),
    _Quality("the smallest ({:.1f} M parameters)", lambda row: row.cost.get("parameters", -1e6) / 1e6),
    _Quality("trained in the least memory ({:.0f} MiB)", lambda row: row.cost.get("training_mib", -1)),
    _Quality("trained in the least time ({:.1f} minutes)", lambda row: row.curve[-1][0] / 60 if row.curve else -1),
)


def strengths(rows: Sequence[Row]) -> dict[str, list[str]]:
    """What each detector leads in, clearly, in words; an empty list where it leads in nothing.

    Args:
        rows: the detectors that have learned something; a lead is one over all others of these.
    """
    found: dict[str, list[str]] = {row.model: [] for row in rows}
    for text, value, most, lead in _QUALITIES:
        known = sorted((row for row in rows if value(row) >= 0), key=value, reverse=most)
        if len(known) > 1 and abs(value(known[0]) - value(known[1])) >= lead(value(known[1])) > 0:
            found[known[0].model].append(text.format(value(known[0])))
    return found

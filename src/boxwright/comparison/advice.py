"""The recommendation of a comparison, in sentences, from its numbers and their noise."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from scipy.stats import t

from boxwright.comparison.row import Row
from boxwright.comparison.strengths import CLEAR_ERROR, strengths

LOSS = 0.05  # fraction of the best AP that may be given up for speed
FASTER = 1.25  # a smaller ratio counts as the same speed
NOTHING = 0.05  # with an AP under this, a detector has learned almost nothing
EARLY = 0.1  # with a best AP under this, it is too early to recommend one
RISING = 0.05  # relative growth of AP in the last fifth of the time from which more time would help
CONFIDENCE = 0.95
BELIEVED = 0.1  # calibration error under which a score can be taken as a probability


def noise(one: Row, other: Row) -> float:
    """Half the width of the 95 % confidence interval of a difference in AP: paired differences on the parts, Student's
    t; infinite with fewer than three parts.
    """
    differences = [a - b for a, b in zip(one.parts, other.parts, strict=True) if min(a, b) >= 0]
    n = len(differences)
    if n < 3:
        return math.inf
    return float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * statistics.stdev(differences) / math.sqrt(n)


def advise(rows: Sequence[Row], images: int) -> list[str]:
    """A recommendation in a few sentences.

    Args:
        rows: of at least one detector.
        images: number of validation images.
    """
    best = max(rows, key=lambda row: row.ap)
    if best.ap < NOTHING:
        nothing = f"all detectors learned almost nothing (best AP {best.ap:.3f})"
        return [f"No recommendation: {nothing}. Give a larger budget.", *_hints(rows)]
    if is_early(rows):
        early = f"Too early to say which one to take: the best AP is {best.ap:.3f} ({best.model})"
        return [f"{early}. Give a larger budget.", *_similar(best, rows, images), *_unfinished(rows), *_nothing(rows)]
    pick = _pick(best, rows)
    learned = [row for row in rows if row.ap >= NOTHING]
    return [
        _take(pick, best, rows),
        *_similar(best, rows, images),
        *_calibration(pick, learned),
        *_strengths(learned),
        *_unfinished(rows),
        *_nothing(rows),
        "Each was trained once: another seed would move every AP a little, too.",
    ]


def is_early(rows: Sequence[Row]) -> bool:
    """Whether no detector has learned enough for a recommendation."""
    return max(row.ap for row in rows) < EARLY


def _pick(best: Row, rows: Sequence[Row]) -> Row:
    """The fastest of those nearly as accurate as the best, if it is faster by more than a little."""
    near = [row for row in rows if row.ap >= (1 - LOSS) * best.ap]
    fastest = min(near, key=lambda row: row.latency)
    return fastest if best.latency >= FASTER * fastest.latency else best


def _take(pick: Row, best: Row, rows: Sequence[Row]) -> str:
    if len(rows) == 1:
        return f"Only {pick.model} was trained: AP {pick.ap:.3f}, {_ms(pick)} per image."
    if pick is not best:
        within = "a difference within noise" if _same(best, pick) else f"{100 * (1 - pick.ap / best.ap):.1f} % less"
        times = best.latency / pick.latency
        return (
            f"Take {pick.model}: AP {pick.ap:.3f}, beside {best.ap:.3f} of {best.model}, the most accurate ({within}), "
            f"and {times:.1f} times faster ({_ms(pick)} per image instead of {_ms(best)})."
        )
    fastest = min(rows, key=lambda row: row.latency)
    if best.latency < FASTER * fastest.latency:
        return f"Take {best.model}: it is the most accurate (AP {best.ap:.3f}), and none is much faster."
    return (
        f"Take {best.model}: it is the most accurate (AP {best.ap:.3f}). {fastest.model} is {_times(best, fastest)} "
        f"times faster ({_ms(fastest)} per image instead of {_ms(best)}), for an AP of {fastest.ap:.3f}."
    )


def _similar(best: Row, rows: Sequence[Row], images: int) -> list[str]:
    """Whether the best is better than the others by more than noise."""
    others = [row for row in rows if row is not best]
    similar = [row for row in others if _same(best, row)]
    if not others:
        return []
    if not similar:
        second = max(others, key=lambda row: row.ap)
        lead = f"{best.ap - second.ap:.3f}, noise {noise(best, second):.3f}"
        return [f"{best.model} is ahead of all others by more than the noise of {images} validation images ({lead})."]
    if any(math.isinf(noise(best, row)) for row in similar):
        return [f"{images} validation images are too few to tell noise from a difference."]
    listed = "; ".join(f"{r.model} (difference {best.ap - r.ap:.3f}, noise {noise(best, r):.3f})" for r in similar)
    return [f"On {images} validation images the lead of {best.model} is within noise over: {listed}."]


def _calibration(pick: Row, learned: Sequence[Row]) -> list[str]:
    """How far the scores of the recommended detector can be believed, and whether another's can be believed more."""
    error = pick.stats.get("ECE", -1)
    if error < 0:
        return []
    off = f"The scores of {pick.model} are off by {error:.3f} on average (ECE)"
    means = "a score of 0.5 means about what it says" if error < BELIEVED else "evaluate shows what a score means"
    closer = min(learned, key=lambda row: abs(row.stats.get("ECE", -1)))
    than = ""
    if 0 <= closer.stats.get("ECE", -1) <= error - CLEAR_ERROR:
        than = f" Those of {closer.model} are off by {closer.stats['ECE']:.3f}."
    return [f"{off}: {means}.{than}"]


def _strengths(learned: Sequence[Row]) -> list[str]:
    """What speaks for each detector."""
    if len(learned) < 2:
        return []
    found = strengths(learned)
    leading = [f"{model}: {', '.join(words)}" for model, words in found.items() if words]
    others = [model for model, words in found.items() if not words]
    sentences = [f"What each is best at: {'; '.join(leading)}."] if leading else []
    return [*sentences, *([f"Best at nothing that was measured: {', '.join(others)}."] if others else [])]


def _same(best: Row, row: Row) -> bool:
    return best.ap - row.ap <= noise(best, row)


def _unfinished(rows: Sequence[Row]) -> list[str]:
    rising = [row.model for row in rows if row.ap >= NOTHING and _rises(row)]
    sentence = f"Still gaining when the time was up: {', '.join(rising)}. A larger budget may change the order."
    return [sentence] if rising else []


def _rises(row: Row) -> bool:
    """Whether AP grew by more than `RISING` in the last fifth of the time."""
    if len(row.curve) < 3:
        return True
    before = [ap for seconds, ap in row.curve if seconds <= 0.8 * row.curve[-1][0]] or [0.0]
    return row.curve[-1][1] > (1 + RISING) * before[-1]


def _nothing(rows: Sequence[Row]) -> list[str]:
    least = [f"{row.model} (AP {max(row.ap, 0):.3f})" for row in rows if row.ap < NOTHING]
    sentence = f"Learned almost nothing in this budget: {', '.join(least)}. That says little about what they can reach."
    return [sentence, *_hints(rows)] if least else []


def _hints(rows: Sequence[Row]) -> list[str]:
    """What to try for each detector that has learned next to nothing."""
    return [
        f"For {row.model} (AP {max(row.ap, 0):.3f}), try in this order: {'; '.join(row.hints)}."
        for row in rows
        if row.hints
    ]


def _ms(row: Row) -> str:
    return f"{row.latency:,.{0 if row.latency >= 100 else 1}f} ms"


def _times(slow: Row, fast: Row) -> str:
    return f"{slow.latency / fast.latency:.1f}"

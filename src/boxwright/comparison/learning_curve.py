"""AP over the time of a training, read from its TensorBoard events."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader


def curve(run: Path) -> list[tuple[float, float]]:
    """Seconds of training until each validation of a run, and its AP.

    Where a run was interrupted, each part has event files of its own and begins at the step from which it was resumed.
    Pauses do not count, nor do steps that were done again.
    """
    found: dict[int, tuple[float, float]] = {}  # by step
    before, previous = 0.0, None  # seconds of the parts before, and the part before this one
    files = (sorted((run / "tensorboard" / part).glob("events.*")) for part in ("train", "val"))
    for train, val in zip(*files, strict=False):
        begun = next(EventFileLoader(str(val)).Load()).wall_time
        first = next((event.step for event, _ in _scalars(train)), None)
        if first is None:
            continue
        if previous is not None:
            before += _seconds_until(first - 1, *previous)
        found = {step: pair for step, pair in found.items() if step < first}
        aps = ((event, value) for event, value in _scalars(val) if value.tag == "ap")
        found |= {event.step: (before + event.wall_time - begun, _number(value)) for event, value in aps}
        previous = (begun, train, val)
    return [found[step] for step in sorted(found)]


def _seconds_until(step: int, begun: float, *files: Path) -> float:
    """Seconds from the beginning of a part of the run to the end of a step, validation included."""
    walls = (event.wall_time for file in files for event, _ in _scalars(file) if event.step <= step)
    return max(walls, default=begun) - begun


def _scalars(file: Path) -> Iterator[tuple[Any, Any]]:
    return ((event, value) for event in EventFileLoader(str(file)).Load() for value in event.summary.value)


def _number(value: Any) -> float:
    return float(value.tensor.float_val[0]) if value.HasField("tensor") else float(value.simple_value)

"""When each validation of a run took place, in seconds of training, however often the run was interrupted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader


def curve(run: Path) -> list[tuple[float, float]]:
    """(seconds since the run began, AP) of each validation, from the run's TensorBoard events.

    Every part of a run, from one interruption to the next, has files of its own and goes on from the step at which it
    was resumed: neither a pause counts nor what was done twice.
    """
    found: dict[int, tuple[float, float]] = {}
    before, previous = 0.0, None
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
    """From the beginning of a part of the run to the end of a step, its validation included."""
    walls = (event.wall_time for file in files for event, _ in _scalars(file) if event.step <= step)
    return max(walls, default=begun) - begun


def _scalars(file: Path) -> Iterator[tuple[Any, Any]]:
    return ((event, value) for event in EventFileLoader(str(file)).Load() for value in event.summary.value)


def _number(value: Any) -> float:
    return float(value.tensor.float_val[0]) if value.HasField("tensor") else float(value.simple_value)

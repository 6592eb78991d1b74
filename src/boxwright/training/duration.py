"""How long a run takes on this machine, from the time of its first steps and of a part of its validation."""

from __future__ import annotations

import math
import statistics
import time
from datetime import datetime, timedelta

import torch

from boxwright.data.loader import BatchSource
from boxwright.evaluation.run import validate
from boxwright.types import Detector

WARM_UP = 2  # steps to leave out, in which memory is reserved and kernels are chosen


class StepTimer:
    """Collects the seconds of the first steps of a run, until they say how long one takes.

    Args:
        least: steps to time.
        most: steps, after which it is enough.
        seconds: after which it is enough, once `least` steps are timed.
    """

    def __init__(self, least: int = 5, most: int = 50, seconds: float = 5.0):
        self.least, self.most, self.seconds = least, most, seconds
        self.times: list[float] = []

    def add(self, seconds: float) -> None:
        """Add a step that took so long."""
        self.times.append(seconds)

    @property
    def enough(self) -> bool:
        """Whether the steps so far suffice."""
        done = len(self.times)
        return done >= self.most or (done >= self.least and sum(self.times) > self.seconds)

    @property
    def step_seconds(self) -> float:
        """The median of the steps but the first ones; there must be a step."""
        return statistics.median(self.times[WARM_UP:] or self.times)


def estimate_validation(
    detector: Detector,
    cache: BatchSource,
    batch_size: int,
    device: torch.device | str,
    world: int = 1,
    seconds: float = 2.0,
) -> float:
    """Seconds that each of `world` processes will need for its share of the validation images.

    One batch of them, spread over all, is validated twice, because the first time sets things up; a first time of over
    `seconds` counts. What comes after the detections, such as scoring, is left out. Changes the state of torch's global
    generator, but not the detector.
    """
    batches = math.ceil(len(cache) / batch_size)
    taken: list[float] = []
    while not taken or (len(taken) < 2 and taken[0] < seconds):
        started = time.perf_counter()
        validate(detector, cache, batch_size, device, rank=0, world=batches)
        taken.append(time.perf_counter() - started)
    return taken[-1] * math.ceil(batches / world)


def spell(seconds: float) -> str:
    """A duration as ``40 seconds``, ``24 minutes``, ``5.5 hours`` or ``3 days``."""
    if seconds < 90:
        count = max(round(seconds), 1)
        return "1 second" if count == 1 else f"{count} seconds"
    units = ((60, 90, "minutes"), (3600, 48, "hours"), (86400, math.inf, "days"))
    size, name = next((size, name) for size, most, name in units if seconds < most * size)
    count = seconds / size
    return f"{count:.2g} {name}" if count < 9.5 else f"{count:.0f} {name}"


def announce(seconds: float, machine: str, sure: bool = True, now: datetime | None = None) -> str:
    """A text that says how long a run will still take, and when it will be done.

    Args:
        seconds: that it will take.
        machine: on which it runs.
        sure: whether it can't end before.
        now: the local time, by default that of the clock.
    """
    now = now or datetime.now()
    end = now + timedelta(seconds=seconds)
    time_of_day = f"{end:%H:%M}" if end.date() == now.date() else f"{end:%Y-%m-%d %H:%M}"
    limit = "about" if sure else "at most"
    return f"{limit} {spell(seconds)} to go on this machine ({machine}), done at {time_of_day}"

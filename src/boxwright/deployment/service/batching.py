"""Requests of many callers, computed together by the one thread that holds the detector.

Between two batches it goes on with a sentence that somebody watches, by one object: neither waits long for the other.
"""

from __future__ import annotations

import math
import queue
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Thread

from boxwright.detections import Detections
from boxwright.runtime.inputs import DecodedImage
from boxwright.runtime.predictor_base import BasePredictor
from boxwright.runtime.sequence_types import StreamObject, StreamToken

BATCH_SIZE = 8
PATIENCE = 0.003  # seconds that the first of a batch waits for others


@dataclass
class Job:
    """One image, and where its answer goes."""

    ready: DecodedImage
    classes: tuple[int, ...] | None
    found: Future[Detections] = field(default_factory=Future)


Object = list[StreamToken | StreamObject]  # its words, and itself
Told = Object | Exception | None  # the next object; why nothing more comes; the end


@dataclass
class Sentence:
    """A sentence to be written object by object, one sentence after the other.

    Attributes:
        begin: of `BasePredictor.write`.
        tell: is called by the detector's thread.
        stopped: set it when nobody listens any more.
    """

    begin: Callable[[], Iterator[StreamToken | StreamObject]]
    tell: Callable[[Told], None]
    stopped: bool = False
    seconds: float = 0.0
    _coming: Iterator[StreamToken | StreamObject] | None = None

    def write_object(self) -> bool:
        """Tell the next object; whether there may be more."""
        if self.stopped:
            return False
        started = time.perf_counter()
        try:
            told = self._next()
        except Exception as error:
            self.tell(error)
            return False
        self.seconds += time.perf_counter() - started
        self.tell(told or None)
        return bool(told)

    def _next(self) -> Object:
        if self._coming is None:
            self._coming = self.begin()
        told: Object = []
        for one in self._coming:
            told.append(one)
            if isinstance(one, StreamObject):
                break
        return told


class Batcher:
    """Gathers images for a few milliseconds and computes them at once.

    Args:
        detector: is called by one thread only.
        size: most images of a batch.
        patience: seconds to wait for a batch to fill.
        told: is given the number of images and the seconds of each batch.
    """

    def __init__(
        self,
        detector: BasePredictor,
        size: int = BATCH_SIZE,
        patience: float = PATIENCE,
        told: Callable[[int, float], None] = lambda images, seconds: None,
    ):
        self.detector, self.size, self.patience, self.told = detector, size, patience, told
        self.seconds_each = 0.1  # of an image, as it was lately
        self._waiting: queue.SimpleQueue[Job | Sentence | None] = queue.SimpleQueue()
        self._sentences: deque[Sentence] = deque()
        self._open = True
        self._thread = Thread(target=self._work, name="detector", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether there is somebody to compute."""
        return self._thread.is_alive()

    def submit(self, ready: DecodedImage, classes: Sequence[int] | None) -> Future[Detections]:
        """All objects of these classes that the detector says are in the image, whatever their scores."""
        job = Job(ready, None if classes is None else tuple(sorted(set(classes))))
        self._waiting.put(job)
        return job.found

    def write(self, sentence: Sentence) -> None:
        """Write a sentence when those before it are written."""
        self._waiting.put(sentence)

    def wait(self, images: int) -> int:
        """Seconds after which so many images will have been computed, at least 1."""
        return max(1, math.ceil(images * self.seconds_each))

    def close(self) -> None:
        """Compute what waits, then stop."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while self._open or self._sentences:
            if jobs := self._gather():
                self._compute(jobs)
            if self._sentences and not self._sentences[0].write_object():
                self.told(1, self._sentences.popleft().seconds)

    def _compute(self, jobs: list[Job]) -> None:
        started = time.perf_counter()
        for alike in _of_the_same_classes(jobs):
            self._answer(alike)
        seconds = time.perf_counter() - started
        self.seconds_each += 0.2 * (seconds / len(jobs) - self.seconds_each)
        self.told(len(jobs), seconds)

    def _gather(self) -> list[Job]:
        """The next batch; an empty one where nothing waits and there is a sentence to write, or nothing will come."""
        jobs: list[Job] = []
        end = None  # of the patience
        while self._open and len(jobs) < self.size:
            try:
                job = self._waiting.get(timeout=self._patience(end))
            except queue.Empty:
                break
            if job is None:
                self._open = False
            elif isinstance(job, Sentence):
                self._sentences.append(job)
            else:
                jobs.append(job)
                end = end or time.perf_counter() + self.patience
        return jobs

    def _patience(self, end: float | None) -> float | None:
        """Seconds to wait for another image: none while there is a sentence; for the first of a batch, for ever."""
        if self._sentences:
            return 0.0
        return None if end is None else max(0.0, end - time.perf_counter())

    def _answer(self, jobs: list[Job]) -> None:
        """What fails in company is tried alone, so that nobody pays for another's image."""
        jobs = [job for job in jobs if job.found.running() or job.found.set_running_or_notify_cancel()]
        if not jobs:
            return
        try:
            found = self.detector.detect([job.ready for job in jobs], 0.0, jobs[0].classes)
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].found.set_exception(error)
                return
            for job in jobs:
                self._answer([job])
            return
        for job, detections in zip(jobs, found, strict=True):
            job.found.set_result(detections)


def _of_the_same_classes(jobs: list[Job]) -> list[list[Job]]:
    """A detector that writes sentences writes only of the classes that it is asked for."""
    groups: dict[tuple[int, ...] | None, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.classes, []).append(job)
    return list(groups.values())

"""One thread holds the detector and computes the images of all requests in batches.

Between two batches it generates the next object of a sequence that is being streamed: neither waits long for the other.
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
from typing import TypeAlias

from boxwright.detections import Detections
from boxwright.runtime.inputs import DecodedImage
from boxwright.runtime.predictor_base import BasePredictor
from boxwright.runtime.sequence_types import StreamObject, StreamToken

BATCH_SIZE = 8
BATCH_PIXELS = 2**22  # of a batch of large images, for which an exported file allocates some 30 bytes a pixel
PATIENCE = 0.003  # seconds that the first image of a batch waits for others

ObjectParts: TypeAlias = list[StreamToken | StreamObject]  # the tokens of an object, and the object
StreamItem: TypeAlias = ObjectParts | Exception | None  # the next object; an error; the end


@dataclass
class ImageJob:
    """One image to compute; `result` is set when it is done."""

    image: DecodedImage | None  # None once there is a result
    classes: tuple[int, ...] | None
    result: Future[Detections] = field(default_factory=Future)

    def __post_init__(self) -> None:
        self.result.add_done_callback(self._forget)

    def _forget(self, _: Future[Detections]) -> None:
        self.image = None


@dataclass
class SequenceJob:
    """A sequence to generate, object by object.

    Attributes:
        begin: starts `BasePredictor.stream_tokens`; called by the detector's thread, as is `send`.
        send: takes each item of the stream.
        stopped: set it when nobody needs the rest.
        seconds: computed so far.
    """

    begin: Callable[[], Iterator[StreamToken | StreamObject]]
    send: Callable[[StreamItem], None]
    stopped: bool = False
    seconds: float = 0.0
    _parts: Iterator[StreamToken | StreamObject] | None = None

    def generate_object(self) -> bool:
        """Send the next object; True if there may be more."""
        if self.stopped:
            return False
        started = time.perf_counter()
        try:
            parts = self._next_object()
        except Exception as error:
            self.send(error)
            return False
        self.seconds += time.perf_counter() - started
        self.send(parts or None)
        return bool(parts)

    def _next_object(self) -> ObjectParts:
        if self._parts is None:
            self._parts = self.begin()
        parts: ObjectParts = []
        for part in self._parts:
            parts.append(part)
            if isinstance(part, StreamObject):
                break
        return parts


class Batcher:
    """Gathers images for a few milliseconds and computes them as one batch.

    Args:
        detector: called by one thread only.
        size: most images in a batch.
        patience: seconds to wait for a batch to fill.
        on_computed: called with the number of images and the seconds of each batch.
    """

    def __init__(
        self,
        detector: BasePredictor,
        size: int = BATCH_SIZE,
        patience: float = PATIENCE,
        on_computed: Callable[[int, float], None] = lambda images, seconds: None,
    ):
        self.detector, self.size, self.patience, self.on_computed = detector, size, patience, on_computed
        self.seconds_each = 0.1  # running mean of the time per image
        self._waiting: queue.SimpleQueue[ImageJob | SequenceJob | None] = queue.SimpleQueue()
        self._sequences: deque[SequenceJob] = deque()
        self._open = True
        self._thread = Thread(target=self._work, name="detector", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the detector's thread is running."""
        return self._thread.is_alive()

    def submit(self, image: DecodedImage, classes: Sequence[int] | None) -> Future[Detections]:
        """All objects of these classes in the image, whatever their scores."""
        job = ImageJob(image, None if classes is None else tuple(sorted(set(classes))))
        self._waiting.put(job)
        return job.result

    def submit_sequence(self, job: SequenceJob) -> None:
        """Generate a sequence after those submitted before."""
        self._waiting.put(job)

    def seconds_for(self, images: int) -> int:
        """Expected seconds to compute this many images, at least 1."""
        return max(1, math.ceil(images * self.seconds_each))

    def close(self, seconds: float = 10.0) -> None:
        """Compute what is waiting, then stop; wait for it no longer than this."""
        self._waiting.put(None)
        self._thread.join(seconds)

    def _work(self) -> None:
        while self._open or self._sequences:
            if jobs := self._gather():
                self._compute(jobs)
            if self._sequences and not self._sequences[0].generate_object():
                self.on_computed(1, self._sequences.popleft().seconds)

    def _compute(self, jobs: list[ImageJob]) -> None:
        started = time.perf_counter()
        for group in _computed_together(jobs):
            self._detect(group)
        seconds = time.perf_counter() - started
        self.seconds_each += 0.2 * (seconds / len(jobs) - self.seconds_each)
        self.on_computed(len(jobs), seconds)

    def _gather(self) -> list[ImageJob]:
        """The next batch; empty if no image is waiting and there is a sequence to generate, or the service closes."""
        jobs: list[ImageJob] = []
        end = None  # of the patience
        while self._open and len(jobs) < self.size:
            try:
                job = self._waiting.get(timeout=self._timeout(end))
            except queue.Empty:
                break
            if job is None:
                self._open = False
            elif isinstance(job, SequenceJob):
                self._sequences.append(job)
            else:
                jobs.append(job)
                end = end or time.perf_counter() + self.patience
        return jobs

    def _timeout(self, end: float | None) -> float | None:
        """Seconds to wait for another image: none while there is a sequence; unlimited for the first of a batch."""
        if self._sequences:
            return 0.0
        return None if end is None else max(0.0, end - time.perf_counter())

    def _detect(self, jobs: list[ImageJob]) -> None:
        """Compute images together; if that fails, one by one, so that a bad image fails alone."""
        jobs = [job for job in jobs if job.result.running() or job.result.set_running_or_notify_cancel()]
        if not jobs:
            return
        try:
            images = [job.image for job in jobs if job.image is not None]
            found = self.detector.detect(images, 0.0, jobs[0].classes)
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].result.set_exception(error)
                return
            for job in jobs:
                self._detect([job])
            return
        for job, detections in zip(jobs, found, strict=True):
            job.result.set_result(detections)


def _computed_together(jobs: list[ImageJob]) -> list[list[ImageJob]]:
    """Jobs of the same classes together, as a sequence detector generates only the classes of its batch; of large
    images only so many as have `BATCH_PIXELS`, or one.
    """
    groups: dict[tuple[tuple[int, ...] | None, int], list[ImageJob]] = {}
    pixels: dict[tuple[int, ...] | None, int] = {}
    for job in jobs:
        if job.image is not None:
            size = job.image.image.size
            pixels[job.classes] = pixels.get(job.classes, 0) + size[0] * size[1]
            groups.setdefault((job.classes, pixels[job.classes] // BATCH_PIXELS), []).append(job)
    return list(groups.values())

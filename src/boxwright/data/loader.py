"""Batches in order or shuffled and augmented, prepared by one background thread while the network works.

Everything random is a function of numbers that a checkpoint holds: the order of (seed, epoch), the augmentation of
(seed, epoch, step, rank). A run resumed at any step therefore sees exactly the batches it would have seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from queue import Full, Queue
from threading import Event, Thread
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from boxwright.config import Augment, UserError, require
from boxwright.data.augment import augment
from boxwright.data.cache import Cache
from boxwright.types import Batch

T = TypeVar("T")
DEPTH = 2  # batches prepared ahead


def steps_per_epoch(n_images: int, batch_size: int, world: int = 1, views: int = 1) -> int:
    """Batches each process gets, so that together they see every image at least once."""
    return math.ceil(n_images / (_distinct(batch_size, views) * world))


def train_batches(
    cache: Cache,
    batch_size: int,
    settings: Augment,
    *,
    seed: int,
    epoch: int,
    first: int = 0,
    rank: int = 0,
    world: int = 1,
    device: torch.device | str = "cpu",
) -> Iterator[Batch]:
    """One epoch of shuffled, augmented batches of exactly `batch_size` images, the views of each counted.

    Args:
        cache: the images.
        batch_size: images of this process in a step; a multiple of `settings.views`.
        settings: of the augmentation.
        seed: of the run.
        epoch: counted from 0.
        first: the step to begin with, counted from 0.
        rank: this process, out of `world`. Together the processes see each image once an epoch; the last step is
            filled up from the beginning of the order.
        device: where the batches are wanted; augmented there.

    Raises:
        UserError: settings outside their range.
    """
    check(settings)
    views, steps = settings.views or 1, steps_per_epoch(len(cache), batch_size, world, settings.views or 1)
    distinct = batch_size // views
    order = torch.randperm(len(cache), generator=torch.Generator().manual_seed(mix(seed, epoch)))

    def prepare(step: int) -> Batch:
        places = torch.arange(distinct) + (step * world + rank) * distinct
        batch = _gather(cache, order[places % len(cache)], device)
        return augment(batch, settings, mix(seed, epoch, step, rank))

    return prefetch(prepare(step) for step in range(first, steps))


def eval_batches(
    cache: Cache, batch_size: int, device: torch.device | str = "cpu", rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """Every image once, uint8, in order; of several processes, each takes every `world`-th image. The last batch is
    smaller where the number does not divide."""
    require(batch_size >= 1, f"the batch size must be at least 1, not {batch_size}.")
    mine = torch.arange(rank, len(cache), world)
    return prefetch(_gather(cache, part, device) for part in mine.split(batch_size) if len(part))


def check(settings: Augment) -> None:
    """Raise `UserError` for augmentation outside its range."""
    low, high = settings.scale or (1.0, 1.0)
    require(0 < low <= high <= 100, f"augment.scale must be two numbers, 0 < low <= high, not {settings.scale}.")
    for name in ("flip", "colour", "min_visible"):
        value = getattr(settings, name) or 0.0
        require(0 <= value <= 1, f"augment.{name} must lie between 0 and 1, not {value}.")
    require(settings.views is None or settings.views >= 1, f"augment.views must be at least 1, not {settings.views}.")


def mix(*numbers: int) -> int:
    """One well-mixed 32-bit seed from several numbers; near ones give unrelated seeds."""
    return int(np.random.SeedSequence([number % 2**63 for number in numbers]).generate_state(1)[0])


def prefetch(items: Iterable[T], depth: int = DEPTH) -> Iterator[T]:
    """The same items, made ahead in one thread, which ends with this iterator. Its exceptions are raised here."""
    queue: Queue[tuple[str, Any]] = Queue(depth)
    stop = Event()

    def offer(kind: str, value: Any) -> bool:
        while not stop.is_set():
            try:
                queue.put((kind, value), timeout=0.1)
                return True
            except Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not offer("item", item):
                    return
            offer("end", None)
        except BaseException as error:  # whatever it is, the caller's thread is where it belongs
            offer("error", error)

    thread = Thread(target=work, name="boxwright-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = queue.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        stop.set()
        thread.join()


def _distinct(batch_size: int, views: int) -> int:
    """Different images in a batch."""
    if batch_size < 1 or batch_size % views:
        raise UserError(f"the batch size ({batch_size}) must be a multiple of augment.views ({views}).")
    return batch_size // views


def _gather(cache: Cache, index_B: Tensor, device: torch.device | str) -> Batch:
    """From the cache to the device; through page-locked memory where that makes the copy asynchronous."""
    batch = cache.batch(index_B, pin=torch.device(device).type == "cuda")
    return batch.to(device)

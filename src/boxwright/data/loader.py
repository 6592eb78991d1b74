"""Batches in order or shuffled and augmented, prepared by background threads while the network works.

Everything random is a function of numbers that a checkpoint holds: the order of (seed, epoch), the augmentation of
(seed, epoch, step, rank). A run resumed at any step therefore sees exactly the batches it would have seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from boxwright.config import Augment, UserError, require
from boxwright.data.augment import augment
from boxwright.data.cache import Cache
from boxwright.threads import map_ahead
from boxwright.types import Batch

T = TypeVar("T")
R = TypeVar("R")
THREADS = 2
AHEAD = 3  # batches ready or in the making


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

    return prefetch(prepare, range(first, steps), device)


def eval_batches(
    cache: Cache, batch_size: int, device: torch.device | str = "cpu", rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """Every image once, uint8, in order; of several processes, each takes every `world`-th image.

    The last batch is smaller where the number does not divide.
    """
    require(batch_size >= 1, f"the batch size must be at least 1, not {batch_size}.")
    mine = range(rank, len(cache), world)
    parts = [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
    return prefetch(lambda part: _gather(cache, part, device), parts, device)


def check(settings: Augment) -> None:
    """Raise `UserError` for augmentation outside its range."""
    low, high = settings.scale or (1.0, 1.0)
    require(0 < low <= high <= 100, f"augment.scale must be two numbers, 0 < low <= high, not {settings.scale}.")
    for name in ("flip", "colour", "min_visible"):
        value = getattr(settings, name) or 0.0
        require(0 <= value <= 1, f"augment.{name} must lie between 0 and 1, not {value}.")
    known = (None, "free", "pix2seq")
    require(settings.geometry in known, f"augment.geometry must be free or pix2seq, not {settings.geometry}.")
    require(settings.views is None or settings.views >= 1, f"augment.views must be at least 1, not {settings.views}.")


def mix(*numbers: int) -> int:
    """One well-mixed 32-bit seed from several numbers; near ones give unrelated seeds."""
    return int(np.random.SeedSequence([number % 2**63 for number in numbers]).generate_state(1)[0])


def prefetch(make: Callable[[T], R], items: Iterable[T], device: torch.device | str = "cpu") -> Iterator[R]:
    """`map(make, items)` in order, made a little ahead by background threads, which end with this iterator.

    Exceptions in `make` are raised here. Each thread computes on one core: the cores belong to the network, and a
    parallel loop of OpenMP that waits for a core which the network holds stops both.
    """
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="boxwright-prefetch")
    _settle(pool, torch.device(device))
    yield from map_ahead(pool, make, items, AHEAD)


def _settle(pool: ThreadPoolExecutor, device: torch.device) -> None:
    """Give each thread of the pool one core and the right device (page-locked memory belongs to the current one)."""
    everyone = Barrier(THREADS)

    def settle(_: int) -> None:
        torch.get_num_threads()  # the first call takes over the global number; later it would undo the next line
        torch.set_num_threads(1)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)
        everyone.wait()  # so that no thread takes two of these tasks

    before = torch.get_num_threads()
    list(pool.map(settle, range(THREADS)))
    torch.set_num_threads(before)  # unchanged in this thread, but what threads started later get


def _distinct(batch_size: int, views: int) -> int:
    """Different images in a batch."""
    if batch_size < 1 or batch_size % views:
        raise UserError(f"the batch size ({batch_size}) must be a multiple of augment.views ({views}).")
    return batch_size // views


def _gather(cache: Cache, indices: Sequence[int] | Tensor, device: torch.device | str) -> Batch:
    """From the cache to the device; through page-locked memory where that makes the copy asynchronous."""
    batch = cache.batch(indices, pin=torch.device(device).type == "cuda")
    return batch.to(device)

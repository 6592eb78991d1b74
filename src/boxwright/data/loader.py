"""Batches in order, or shuffled and augmented, prepared by background threads while the network computes.

All randomness is a function of numbers in a checkpoint: the order of (seed, epoch), the augmentation of (seed, epoch,
step, rank). Images are mixed only with others of their batch. So a run that is resumed at any step gets exactly the
batches that it would have got.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from boxwright.config import Augment, UserError, require
from boxwright.data.augment import augment
from boxwright.data.mixing import without_mixing
from boxwright.threads import map_ahead
from boxwright.types import Batch

T = TypeVar("T")
R = TypeVar("R")
THREADS = 2
AHEAD = 3  # batches that are ready or being made


class BatchSource(Protocol):
    """What batches are made of: a `boxwright.data.cache.Cache` or a `boxwright.data.shards.stream.ShardBatches`."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int] | Tensor, *, pin: bool = False) -> Batch:
        """The images at these positions; see `boxwright.data.cache.Cache.batch`."""
        ...

    def order(self, seed: int, world: int) -> Tensor:
        """All positions, shuffled, (n,) int64, as a function of the seed and the number of processes."""
        ...

    @property
    def in_parts(self) -> bool:
        """Whether each process takes a part of the order for itself, because it reads what lies close together."""
        ...

    @property
    def checksums(self) -> dict[str, str]:
        """Checksums of the images, by what of them they are of; empty if none is known."""
        ...


def steps_per_epoch(n_images: int, batch_size: int, world: int = 1, views: int = 1) -> int:
    """Batches per process, so that all processes together see every image at least once."""
    return math.ceil(n_images / (_distinct(batch_size, views) * world))


def train_batches(
    cache: BatchSource,
    batch_size: int,
    settings: Augment,
    *,
    seed: int,
    epoch: int,
    epochs: int | None = None,
    first: int = 0,
    rank: int = 0,
    world: int = 1,
    device: torch.device | str = "cpu",
) -> Iterator[Batch]:
    """One epoch of shuffled, augmented batches of exactly `batch_size` images, counting views.

    Args:
        cache: the images.
        batch_size: images per step of this process, a multiple of `settings.views`.
        settings: of the augmentation.
        seed: of the run.
        epoch: counted from 0.
        epochs: of the run, which decides when images are no longer mixed; None mixes them in this epoch.
        first: the step to begin with, counted from 0.
        rank: this process, out of `world`. Together the processes see each image once per epoch; the last step is
            completed with the first images of the order.
        device: for the batches, which are augmented there.

    Raises:
        UserError: settings outside their range.
    """
    check(settings)
    views, steps = settings.views or 1, steps_per_epoch(len(cache), batch_size, world, settings.views or 1)
    distinct = batch_size // views
    order = cache.order(mix(seed, epoch), world)

    def prepare(step: int) -> Batch:
        turn = rank * steps + step if cache.in_parts else step * world + rank
        positions = torch.arange(distinct) + turn * distinct
        batch = _gather(cache, order[positions % len(cache)], device)
        done = 0.0 if epochs is None else (epoch + step / steps) / epochs
        mixed = settings.mixed_until is None or done < settings.mixed_until
        return augment(batch, settings if mixed else without_mixing(settings), mix(seed, epoch, step, rank))

    return prefetch(prepare, range(first, steps), device)


def eval_batches(
    cache: BatchSource, batch_size: int, device: torch.device | str = "cpu", rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """Every image once, uint8, in order; each of several processes takes every `world`-th image.

    The last batch may be smaller.
    """
    require(batch_size >= 1, f"the batch size must be at least 1, not {batch_size}.")
    indices = range(rank, len(cache), world)
    chunks = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    return prefetch(lambda chunk: _gather(cache, chunk, device), chunks, device)


def check(settings: Augment) -> None:
    """Raise `UserError` for augmentation settings outside their range."""
    low, high = settings.scale or (1.0, 1.0)
    require(0 < low <= high <= 100, f"augment.scale must be two numbers, 0 < low <= high, not {settings.scale}.")
    for name in ("flip", "colour", "min_visible", "mosaic", "mixup", "copy_blend", "mixed_until"):
        value = getattr(settings, name) or 0.0
        require(0 <= value <= 1, f"augment.{name} must lie between 0 and 1, not {value}.")
    known = (None, "free", "pix2seq")
    require(settings.geometry in known, f"augment.geometry must be free or pix2seq, not {settings.geometry}.")
    require(settings.views is None or settings.views >= 1, f"augment.views must be at least 1, not {settings.views}.")


def mix(*numbers: int) -> int:
    """A well-mixed 32-bit seed from several numbers; close numbers give unrelated seeds."""
    return int(np.random.SeedSequence([number % 2**63 for number in numbers]).generate_state(1)[0])


def prefetch(make: Callable[[T], R], items: Iterable[T], device: torch.device | str = "cpu") -> Iterator[R]:
    """`map(make, items)` in order, computed a little ahead in background threads, which end with this iterator.

    Exceptions in `make` are raised here. Each thread computes on one core: the network needs the cores, and an OpenMP
    loop that waits for a core that the network holds would stop both.
    """
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="boxwright-prefetch")
    _set_up(pool, torch.device(device))
    yield from map_ahead(pool, make, items, AHEAD)


def _set_up(pool: ThreadPoolExecutor, device: torch.device) -> None:
    """Give each thread of the pool one core and its device (page-locked memory belongs to the current device)."""
    everyone = Barrier(THREADS)

    def set_up(_: int) -> None:
        torch.get_num_threads()  # its first call takes the global number; a later one would undo the next line
        torch.set_num_threads(1)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)
        everyone.wait()  # so that no thread takes two of these tasks

    before = torch.get_num_threads()
    list(pool.map(set_up, range(THREADS)))
    torch.set_num_threads(before)  # unchanged in this thread, but the number for threads started later


def _distinct(batch_size: int, views: int) -> int:
    """Number of different images in a batch."""
    if batch_size < 1 or batch_size % views:
        raise UserError(f"the batch size ({batch_size}) must be a multiple of augment.views ({views}).")
    return batch_size // views


def _gather(cache: BatchSource, indices: Sequence[int] | Tensor, device: torch.device | str) -> Batch:
    """A batch on the device; page-locked memory makes copies to a CUDA device asynchronous."""
    batch = cache.batch(indices, pin=torch.device(device).type == "cuda")
    return batch.to(device)

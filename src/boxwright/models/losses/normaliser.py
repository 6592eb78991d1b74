"""What losses are divided by, so that they depend neither on devices nor on how a batch is divided for memory.

A loss is a sum over objects divided by their number, or by a sum of weights. Where several devices, or several batches
whose gradients are added up, make one step, this number is that of all of them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain, repeat

import torch
import torch.distributed as dist
from torch import Tensor

_SYNCHRONISED = ContextVar("synchronised", default=True)
_RECORDED: ContextVar[list[Tensor] | None] = ContextVar("recorded", default=None)
_GIVEN: ContextVar[Iterator[Tensor] | None] = ContextVar("given", default=None)


def normaliser(count: Tensor) -> Tensor:
    """A number that losses are divided by, averaged over all devices and batches of a step.

    It is at least 1 for all of them together.

    Args:
        count: that of this device and batch, a scalar.
    """
    recorded, given = _RECORDED.get(), _GIVEN.get()
    if recorded is not None:
        recorded.append(count.detach())
    if given is not None:
        return next(given)
    return _over_devices(count, 1)


@contextmanager
def without_synchronisation() -> Iterator[None]:
    """Inside, no device waits for another: in validation, one may have fewer batches than the others."""
    before = _SYNCHRONISED.set(False)
    try:
        yield
    finally:
        _SYNCHRONISED.reset(before)


@contextmanager
def recorded_counts() -> Iterator[list[Tensor]]:
    """Inside, each count that is given to `normaliser` is kept in the list, and no device waits for another."""
    counts: list[Tensor] = []
    before = _RECORDED.set(counts)
    try:
        with without_synchronisation():
            yield counts
    finally:
        _RECORDED.reset(before)


@contextmanager
def given_normalisers(normalisers: Sequence[Tensor], batches: int) -> Iterator[None]:
    """Inside, `normaliser` returns these, one after the other, for each of so many batches."""
    before = _GIVEN.set(chain.from_iterable(repeat(normalisers, batches)))
    try:
        yield
    finally:
        _GIVEN.reset(before)


def joint_normalisers(counts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The normalisers of several batches that make one step, from the counts that each of them gave."""
    return [_over_devices(torch.stack(same).sum(), len(counts)) for same in zip(*counts, strict=True)]


def _over_devices(count: Tensor, batches: int) -> Tensor:
    if _SYNCHRONISED.get() and dist.is_available() and dist.is_initialized():
        count = count.clone()
        dist.all_reduce(count)
        return count.clamp(min=1) / (dist.get_world_size() * batches)
    return count.clamp(min=1) / batches

"""Losses that several detectors share."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

_TOGETHER = ContextVar("together", default=True)


@contextmanager
def each_alone() -> Iterator[None]:
    """Inside, no device waits for another: when they validate, one may have fewer batches than the others."""
    before = _TOGETHER.set(False)
    try:
        yield
    finally:
        _TOGETHER.reset(before)


def across_devices(count: Tensor) -> Tensor:
    """A normaliser averaged over all devices, at least 1: the loss must not depend on how images are spread."""
    if _TOGETHER.get() and dist.is_available() and dist.is_initialized():
        count = count.clone()
        dist.all_reduce(count)
        count = count / dist.get_world_size()
    return count.clamp(min=1)


def quality_focal(logits: Tensor, quality: Tensor, gamma: float = 2.0) -> Tensor:
    """Quality focal loss (Li et al. 2020, eq. 5), element by element.

    Args:
        logits: any shape.
        quality: same shape, the wanted probability in [0, 1]: the IoU of a positive, 0 for a negative.
        gamma: how fast well-predicted elements lose weight.
    """
    weight = (logits.sigmoid() - quality).abs() ** gamma
    return F.binary_cross_entropy_with_logits(logits, quality, reduction="none") * weight


@torch.no_grad()
def focal_cost(probability: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """What calling a prediction a positive would change in the focal loss (Deformable DETR's matcher)."""
    positive = -alpha * (1 - probability) ** gamma * (probability + 1e-8).log()
    negative = -(1 - alpha) * probability**gamma * (1 - probability + 1e-8).log()
    return positive - negative

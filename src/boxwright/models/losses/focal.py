"""Focal losses, and the normaliser of losses over several devices."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

_SYNCHRONISED = ContextVar("synchronised", default=True)


@contextmanager
def without_synchronisation() -> Iterator[None]:
    """Inside, no device waits for another: in validation, one may have fewer batches than the others."""
    before = _SYNCHRONISED.set(False)
    try:
        yield
    finally:
        _SYNCHRONISED.reset(before)


def across_devices(count: Tensor) -> Tensor:
    """A normaliser averaged over all devices: the loss must not depend on how images are distributed.

    It is at least 1 for all devices together.
    """
    if _SYNCHRONISED.get() and dist.is_available() and dist.is_initialized():
        count = count.clone()
        dist.all_reduce(count)
        return count.clamp(min=1) / dist.get_world_size()
    return count.clamp(min=1)


def quality_focal(logits: Tensor, quality: Tensor, gamma: float = 2.0) -> Tensor:
    """Quality focal loss (Li et al. 2020, eq. 5), element by element.

    Args:
        logits: any shape.
        quality: same shape, the target in [0, 1]: the IoU of a positive, 0 for a negative.
        gamma: focusing parameter.
    """
    weight = (logits.sigmoid() - quality).abs() ** gamma
    return F.binary_cross_entropy_with_logits(logits, quality, reduction="none") * weight


@torch.no_grad()
def focal_cost(probability: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Matching cost: focal loss of a prediction as positive minus that as negative (Deformable DETR's matcher)."""
    positive = -alpha * (1 - probability) ** gamma * (probability + 1e-8).log()
    negative = -(1 - alpha) * probability**gamma * (1 - probability + 1e-8).log()
    return positive - negative

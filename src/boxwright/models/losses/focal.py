"""Focal losses."""

import torch
import torch.nn.functional as F
from torch import Tensor


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

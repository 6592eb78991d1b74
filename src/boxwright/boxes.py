"""Box algebra. One convention inside the library: xyxy, normalised to the canvas. Others only at the edges.

Every function takes tensors of shape (..., 4) on any device and broadcasts over the leading dimensions.
"""

import torch
from torch import Tensor


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Corners to centre and size."""
    return torch.cat([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], -1)


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Centre and size to corners."""
    half = boxes[..., 2:] / 2
    return torch.cat([boxes[..., :2] - half, boxes[..., :2] + half], -1)


def area(boxes: Tensor) -> Tensor:
    """Area of each box, (...,); reversed boxes have area 0."""
    size = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return size[..., 0] * size[..., 1]


def clip(boxes: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Every coordinate cut to [low, high]."""
    return boxes.clamp(low, high)


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection and union of boxes that broadcast against each other."""
    corner = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    intersection = corner.clamp(min=0).prod(-1)
    return intersection, area(a) + area(b) - intersection


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union in [0, 1] of boxes that broadcast; 0 where both are empty.

    For all pairs of (..., N, 4) and (..., M, 4) pass ``a[..., :, None, :], b[..., None, :, :]``.
    """
    intersection, union = _overlap(a, b)
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU in [-1, 1] (Rezatofighi et al. 2019, eq. 1 to 4), broadcasting as `iou` does."""
    intersection, union = _overlap(a, b)
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    tiny = torch.finfo(union.dtype).tiny
    return intersection / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)

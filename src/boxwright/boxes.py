"""Box algebra. Inside the library all boxes are xyxy, normalised to the canvas; other formats only at its edges.

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
    x1, y1, x2, y2 = boxes.unbind(-1)
    return (x2 - x1).clamp(min=0) * (y2 - y1).clamp(min=0)


def clip(boxes: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Clip each coordinate to [low, high]."""
    return boxes.clamp(low, high)


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection and union of boxes that broadcast against each other.

    Coordinate by coordinate: reductions over a dimension of two cost several times as much.
    """
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a.unbind(-1), b.unbind(-1)
    wide = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp(min=0)
    high = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp(min=0)
    intersection = wide * high
    return intersection, area(a) + area(b) - intersection


def _hull(a: Tensor, b: Tensor) -> Tensor:
    """Area of the smallest box that encloses both."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a.unbind(-1), b.unbind(-1)
    wide = (torch.maximum(ax2, bx2) - torch.minimum(ax1, bx1)).clamp(min=0)
    high = (torch.maximum(ay2, by2) - torch.minimum(ay1, by1)).clamp(min=0)
    return wide * high


def distance(a: Tensor, b: Tensor) -> Tensor:
    """L1 distance, (...,): sum of the absolute differences of the four coordinates of boxes that broadcast."""
    x, y, z, w = ((one - other).abs() for one, other in zip(a.unbind(-1), b.unbind(-1), strict=True))
    return x + y + z + w


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union in [0, 1], (...,), of boxes that broadcast; 0 where both are empty.

    For all pairs of (..., N, 4) and (..., M, 4) pass ``a[..., :, None, :], b[..., None, :, :]``.
    """
    intersection, union = _overlap(a, b)
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU in [-1, 1] (Rezatofighi et al. 2019, eq. 1 to 4), broadcasting as `iou` does."""
    intersection, union = _overlap(a, b)
    hull = _hull(a, b)
    tiny = torch.finfo(union.dtype).tiny
    return intersection / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)

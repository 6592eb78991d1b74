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


def to_pixels(boxes: Tensor, canvas: Tensor, valid: Tensor, original: Tensor) -> Tensor:
    """Boxes in [0, 1] of the canvas as pixels of the original image, clipped to it, float32.

    Args:
        boxes: (..., 4).
        canvas: height and width of the canvas, (..., 2).
        valid: height and width of the part of the canvas that is image.
        original: height and width of the image before it was resized.
    """
    scale = per_side(canvas / valid.clamp(min=1) * original)  # at least 1: images that are all padding
    return torch.minimum((boxes.float() * scale).clamp(min=0), per_side(original).float())


def to_canvas(boxes: Tensor, canvas: Tensor, valid: Tensor, original: Tensor) -> Tensor:
    """Boxes in pixels of the original image as fractions of the canvas; the arguments are those of `to_pixels`."""
    return boxes * per_side(valid / original / canvas)


def per_side(size: Tensor) -> Tensor:
    """A size (height, width) as (width, height, width, height): one number for each side of a box xyxy."""
    width_height = size.flip(-1)
    return torch.cat([width_height, width_height], -1)


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

"""Image and padding, on the canvas and on the cells of a map, for detectors of the DETR family."""

import torch
import torch.nn.functional as F
from torch import Tensor

from boxwright.boxes import per_side
from boxwright.types import image_mask, pixels


def cut(images_BCHW: Tensor, sizes_B2: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """The canvas as far as the largest image reaches, as published code pads a batch, and its valid mask (B, H, W).

    During export the canvas stays as it is: the graph gets images of one size, without padding.

    Args:
        images_BCHW: the canvas, uint8 or in [0, 1].
        sizes_B2: height and width of the valid area, in pixels.
        mean: colour of the padding, which is zero after normalisation.
    """
    cut_BCHW = images_BCHW
    if not torch.compiler.is_exporting():
        height, width = sizes_B2.amax(0).clamp(min=1).tolist()
        cut_BCHW = images_BCHW[..., :height, :width]
    mask_BHW = image_mask(cut_BCHW, sizes_B2)
    filled_BCHW = torch.where(mask_BHW[:, None], pixels(cut_BCHW), mean)
    return filled_BCHW.contiguous(memory_format=torch.channels_last), mask_BHW


def valid_cells(mask_BHW: Tensor, map_BCHW: Tensor) -> Tensor:
    """The valid mask of a map's cells, (B, h, w), by their nearest pixel. Where an image is all padding, all cells are
    valid, because softmax over nothing is NaN.
    """
    valid_BHW = F.interpolate(mask_BHW[:, None].float(), size=map_BCHW.shape[-2:])[:, 0].bool()
    return valid_BHW | ~valid_BHW.flatten(1).any(1)[:, None, None]


def valid_ratios(images_BCHW: Tensor, sizes_B2: Tensor) -> Tensor:
    """The valid area of the canvas, (B, 4) as (width, height, width, height) in [0, 1]."""
    canvas_2 = torch.tensor(images_BCHW.shape[-2:], device=sizes_B2.device)
    return per_side(sizes_B2.clamp(min=1) / canvas_2)

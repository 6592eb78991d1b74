"""What is image and what is padding: of a canvas, and of the cells of a map; for detectors of DETR's kind."""

import torch
import torch.nn.functional as F
from torch import Tensor

from boxwright.types import image_mask, pixels


def cut(images_BCHW: Tensor, sizes_B2: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """The canvas as far as the largest image reaches, as the originals pad a batch; and where it is image.

    While a graph is exported, the canvas is left as it is: the graph gets images of one size, without padding.

    Args:
        images_BCHW: the canvas, uint8 or in [0, 1].
        sizes_B2: height and width of the part that is image.
        mean: the colour that padding gets, which is zero once it is normalised.
    """
    cut_BCHW = images_BCHW
    if not torch.compiler.is_exporting():
        height, width = sizes_B2.amax(0).clamp(min=1).tolist()
        cut_BCHW = images_BCHW[..., :height, :width]
    mask_BHW = image_mask(cut_BCHW, sizes_B2)
    filled_BCHW = torch.where(mask_BHW[:, None], pixels(cut_BCHW), mean)
    return filled_BCHW.contiguous(memory_format=torch.channels_last), mask_BHW


def seen_cells(mask_BHW: Tensor, map_BCHW: Tensor) -> Tensor:
    """The cells of a map that are image, (B, h, w) bool, by their nearest pixel; of an image that is all padding, all
    of them, because attention to nothing is not a number.
    """
    seen_BHW = F.interpolate(mask_BHW[:, None].float(), size=map_BCHW.shape[-2:])[:, 0].bool()
    return seen_BHW | ~seen_BHW.flatten(1).any(1)[:, None, None]


def extent(images_BCHW: Tensor, sizes_B2: Tensor) -> Tensor:
    """The part of the canvas that is image, (B, 4) as (width, height, width, height) in [0, 1]."""
    canvas_2 = torch.tensor(images_BCHW.shape[-2:], device=sizes_B2.device)
    return (sizes_B2.clamp(min=1) / canvas_2).flip(-1).repeat(1, 2)

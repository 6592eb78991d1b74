"""The sine and cosine position encodings of google-research/pix2seq, which are not those of DETR.

Sines fill the first half of the channels and cosines the second (they are not interleaved), and positions run from 0
to 2 pi over the whole range, whatever the number of cells (architectures/transformers.py there).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def sincos(positions_N: Tensor, dim: int) -> Tensor:
    """Encodings (N, dim) of positions in any unit: all sines, then all cosines, with rates 1 / 10000^(2 i / dim)."""
    half = torch.arange((dim + 1) // 2, device=positions_N.device)
    angles_NE = positions_N[:, None] / 10000 ** (2 * half / dim)
    return torch.cat([angles_NE.sin(), angles_NE[:, : dim // 2].cos()], 1)


def sincos_2d(height: int, width: int, dim: int, device: torch.device | str = "cpu") -> Tensor:
    """Encodings (height * width, dim) of a grid, row by row: y in the first half of the channels, x in the second.

    A single row or column is encoded as a line.
    """
    if height == 1 or width == 1:
        return sincos(spread(height * width, device), dim)
    y_HE, x_WE = (sincos(spread(n, device), dim // 2) for n in (height, width))
    y_HWE = y_HE[:, None].expand(-1, width, -1)
    return torch.cat([y_HWE, x_WE.expand_as(y_HWE)], -1).flatten(0, 1)


def resize_2d(table_NE: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """A learned table (height * width, dim) resized bilinearly for another grid; unchanged for the same grid."""
    if old == new:
        return table_NE
    grid_1EHW = table_NE.T.unflatten(1, old)[None]
    return F.interpolate(grid_1EHW, new, mode="bilinear", antialias=True)[0].flatten(1).T


def spread(count: int, device: torch.device | str = "cpu") -> Tensor:
    """0 to 2 pi in equal steps."""
    return torch.arange(count, device=device) / max(count - 1, 1) * (2 * math.pi)

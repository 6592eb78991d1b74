"""The parts of DETR's kind of network: codes of cells, blocks that norm last.

Against the pre-norm blocks of `boxwright.models.layers.attention`: each addition is followed by its norm (eps 1e-5),
the MLP has a rectifier, and positions are not added once but to what asks and to the keys of every layer ("End-to-end
object detection with transformers", Carion et al. 2020; numbers as in facebookresearch/detr).
"""

import math

import torch
from torch import Tensor, nn

from boxwright.models.layers.attention import Attention
from boxwright.models.layers.dropout import Dropout
from boxwright.models.layers.kv_cache import KeysValues, StepPositions


def sine_2d(seen_BHW: Tensor, dim: int, normalised: bool, shift: float = 0.0) -> Tensor:
    """Codes (B, H * W, dim) of the cells of images, DETR's: y in the first half of the channels, x in the second.

    Args:
        seen_BHW: True where a cell belongs to the image; only these are counted.
        dim: channels, a multiple of 4.
        normalised: count up to 2 pi; else in cells from 1.
        shift: taken off each count; 0.5 (of Deformable DETR) means the centre of a cell.
    """
    codes = []
    for axis in (1, 2):
        place_BHW = seen_BHW.cumsum(axis).float()
        if normalised:  # beyond the image the last count may be 0
            last = place_BHW.narrow(axis, place_BHW.shape[axis] - 1, 1).clamp(min=1)
            place_BHW = (place_BHW - shift) / (last + 1e-6) * (2 * math.pi)
        codes.append(sine_1d(place_BHW, dim // 2))
    return torch.cat(codes, -1).flatten(1, 2)


def sine_1d(angles: Tensor, dim: int) -> Tensor:
    """Codes (..., dim) of angles (...,) at rates 1 / 10000^(2 i / dim); sines and cosines alternate."""
    rates = 10000 ** (torch.arange(0, dim, 2, device=angles.device) / dim)
    slowed = angles[..., None] / rates
    return torch.stack([slowed.sin(), slowed.cos()], -1).flatten(-2)


class PostNormEncoderBlock(nn.Module):
    """Self-attention over all cells of the image, then an MLP; with `pre_norm`, each looks at normed cells instead."""

    def __init__(self, dim: int, hidden: int, heads: int, dropout: float, pre_norm: bool = False):
        super().__init__()
        self.pre_norm = pre_norm
        self.attention, self.mlp = Attention(dim, heads), mlp(dim, hidden, dropout)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)

    def forward(self, x_BME: Tensor, positions_BME: Tensor, seen_B11M: Tensor) -> Tensor:
        """Same shape as given; cells that are not seen are not looked at."""
        if self.pre_norm:
            x_BME = x_BME + self.dropout(self._look(self.norm1(x_BME), positions_BME, seen_B11M))
            return x_BME + self.dropout(self.mlp(self.norm2(x_BME)))
        x_BME = self.norm1(x_BME + self.dropout(self._look(x_BME, positions_BME, seen_B11M)))
        return self.norm2(x_BME + self.dropout(self.mlp(x_BME)))

    def _look(self, x_BME: Tensor, positions_BME: Tensor, seen_B11M: Tensor) -> Tensor:
        placed_BME = x_BME + positions_BME
        return self.attention(placed_BME, self.attention.keys_values(placed_BME, x_BME), mask=seen_B11M)


class PostNormDecoderBlock(nn.Module):
    """Self-attention over what is written so far, attention to the image, then an MLP."""

    def __init__(self, dim: int, hidden: int, heads: int, dropout: float):
        super().__init__()
        self.self_attention, self.cross_attention = Attention(dim, heads), Attention(dim, heads)
        self.mlp = mlp(dim, hidden, dropout)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x_BLE: Tensor,
        places_LE: Tensor | float,
        image: KeysValues,
        seen_B11M: Tensor,
        cache: KeysValues | None = None,
        place: StepPositions | None = None,
    ) -> Tensor:
        """The next layer's view of the words, as `boxwright.models.layers.attention.PostNormDecoderBlock` has it.

        Args:
            x_BLE: words, either the whole sentence or those at `place`.
            places_LE: what tells where they stand.
            image: keys and values of the image, which may serve several consecutive rows of x.
            seen_B11M: which cells of the image may be looked at.
            cache: what is written so far, to which these words are added; None if x is the whole sentence.
            place: where x stands in the sentence; None if x is the whole sentence.
        """
        placed_BLE = x_BLE + places_LE
        seen = self.self_attention.keys_values(placed_BLE, x_BLE)
        if cache is None or place is None:
            attended_BLE = self.self_attention(placed_BLE, seen, causal=True)
        else:
            cache.write(place.positions_L, seen)
            attended_BLE = self.self_attention(placed_BLE, cache, mask=place.hidden_LR)
        x_BLE = self.norm1(x_BLE + self.dropout(attended_BLE))
        images = seen_B11M.shape[0]  # whose rows ask side by side
        asking = (x_BLE + places_LE).reshape(images, -1, x_BLE.shape[-1])
        looked_BLE = self.cross_attention(asking, image, mask=seen_B11M).view_as(x_BLE)
        x_BLE = self.norm2(x_BLE + self.dropout(looked_BLE))
        return self.norm3(x_BLE + self.dropout(self.mlp(x_BLE)))


def mlp(dim: int, hidden: int, dropout: float) -> nn.Sequential:
    """Two linear layers with a rectifier between."""
    return nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), Dropout(dropout), nn.Linear(hidden, dim))

"""Parts of the DETR family: sine position encodings, post-norm blocks.

Unlike the pre-norm blocks of `boxwright.models.layers.attention`: each residual addition is followed by its norm (eps
1e-5), the MLP has a ReLU, and positions are added to queries and keys of every layer ("End-to-end object detection with
transformers", Carion et al. 2020; numbers as in facebookresearch/detr).
"""

import math

import torch
from torch import Tensor, nn

from boxwright.models.layers.attention import Attention
from boxwright.models.layers.dropout import Dropout
from boxwright.models.layers.kv_cache import KeysValues, StepPositions


def sine_2d(valid_BHW: Tensor, dim: int, normalised: bool, shift: float = 0.0) -> Tensor:
    """DETR's position encodings (B, H * W, dim): y in the first half of the channels, x in the second.

    Args:
        valid_BHW: False where a cell is padding; only valid cells are counted.
        dim: channels, a multiple of 4.
        normalised: positions run up to 2 pi; else in cells from 1.
        shift: subtracted from each position, in cells; 0.5 (Deformable DETR) means the centre of a cell.
    """
    codes = []
    for axis in (1, 2):
        position_BHW = valid_BHW.cumsum(axis).float()
        if normalised:
            last = valid_BHW.sum(axis, keepdim=True).float().clamp(min=1)  # 0 in an image that is all padding
            position_BHW = (position_BHW - shift) / (last + 1e-6) * (2 * math.pi)
        codes.append(sine_1d(position_BHW, dim // 2))
    return torch.cat(codes, -1).flatten(1, 2)


def sine_1d(angles: Tensor, dim: int) -> Tensor:
    """Encodings (..., dim) of angles (...,) at rates 1 / 10000^(2 i / dim); sines and cosines alternate."""
    rates = 10000 ** (torch.arange(0, dim, 2, device=angles.device) / dim)
    slowed = angles[..., None] / rates
    return torch.stack([slowed.sin(), slowed.cos()], -1).flatten(-2)


class PostNormEncoderBlock(nn.Module):
    """Self-attention over all cells of the image, then an MLP; with `pre_norm` the norms come before both."""

    def __init__(self, dim: int, hidden: int, heads: int, dropout: float, pre_norm: bool = False):
        super().__init__()
        self.pre_norm = pre_norm
        self.attention, self.mlp = Attention(dim, heads), mlp(dim, hidden, dropout)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)

    def forward(self, x_BME: Tensor, positions_BME: Tensor, valid_B11M: Tensor) -> Tensor:
        """Same shape as the input; `valid_B11M` is False for cells that must not be attended to."""
        if self.pre_norm:
            x_BME = x_BME + self.dropout(self._attend(self.norm1(x_BME), positions_BME, valid_B11M))
            return x_BME + self.dropout(self.mlp(self.norm2(x_BME)))
        x_BME = self.norm1(x_BME + self.dropout(self._attend(x_BME, positions_BME, valid_B11M)))
        return self.norm2(x_BME + self.dropout(self.mlp(x_BME)))

    def _attend(self, x_BME: Tensor, positions_BME: Tensor, valid_B11M: Tensor) -> Tensor:
        positioned_BME = x_BME + positions_BME
        return self.attention(positioned_BME, self.attention.keys_values(positioned_BME, x_BME), mask=valid_B11M)


class PostNormDecoderBlock(nn.Module):
    """Causal self-attention over the tokens, cross-attention to the image, then an MLP."""

    def __init__(self, dim: int, hidden: int, heads: int, dropout: float):
        super().__init__()
        self.self_attention, self.cross_attention = Attention(dim, heads), Attention(dim, heads)
        self.mlp = mlp(dim, hidden, dropout)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x_BLE: Tensor,
        positions_LE: Tensor | float,
        image: KeysValues,
        valid_B11M: Tensor,
        cache: KeysValues | None = None,
        step: StepPositions | None = None,
    ) -> Tensor:
        """States of the tokens after this layer.

        Args:
            x_BLE: states of the tokens, either of whole sequences or of those of a step.
            positions_LE: their position encodings.
            image: keys and values of the image; several consecutive rows of x may share an image.
            valid_B11M: False for cells of the image that must not be attended to.
            cache: keys and values of the tokens so far, to which these are added; None if x is the whole sequence.
            step: positions of x in the sequence; None if x is the whole sequence.
        """
        positioned_BLE = x_BLE + positions_LE
        keys_values = self.self_attention.keys_values(positioned_BLE, x_BLE)
        if cache is None or step is None:
            attended_BLE = self.self_attention(positioned_BLE, keys_values, causal=True)
        else:
            cache.write(step.positions_L, keys_values)
            attended_BLE = self.self_attention(positioned_BLE, cache, mask=step.mask_LR)
        x_BLE = self.norm1(x_BLE + self.dropout(attended_BLE))
        images = valid_B11M.shape[0]  # sequences of one image are one long row of queries
        queries_BLE = (x_BLE + positions_LE).reshape(images, -1, x_BLE.shape[-1])
        attended_BLE = self.cross_attention(queries_BLE, image, mask=valid_B11M).view_as(x_BLE)
        x_BLE = self.norm2(x_BLE + self.dropout(attended_BLE))
        return self.norm3(x_BLE + self.dropout(self.mlp(x_BLE)))


def mlp(dim: int, hidden: int, dropout: float) -> nn.Sequential:
    """Two linear layers with a ReLU in between."""
    return nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), Dropout(dropout), nn.Linear(hidden, dim))

"""The parts of `deformable`: maps of one width, and post-norm layers of deformable attention over them.

Deformable DETR, section 4.1; numbers as in Hugging Face's implementation.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from boxwright.models.layers.attention import Attention
from boxwright.models.layers.deformable_attention import DeformableAttention, Shapes
from boxwright.models.layers.dropout import Dropout
from boxwright.models.layers.post_norm import mlp, sine_1d, sine_2d


class MultiScaleCells(NamedTuple):
    """The cells of all maps as one sequence: finest map first, row by row.

    Attributes:
        x_BTE: their states.
        padding_BT: True where a cell is padding.
        shapes: height and width of each map.
        valid_ratios_BV2: the valid area of each map, (width, height) in [0, 1].
        centres_BT2: centre (x, y) of each cell, in [0, 1] of the image.
        reach_BT2: width and height of a cell, in the same unit.
        level_T: the map to which a cell belongs.
    """

    x_BTE: Tensor
    padding_BT: Tensor
    shapes: Shapes
    valid_ratios_BV2: Tensor
    centres_BT2: Tensor
    reach_BT2: Tensor
    level_T: Tensor


class Queries(NamedTuple):
    """Input of a decoder.

    Attributes:
        contents_BQE: states of the queries.
        boxes_BQX: their reference points (X = 2), or boxes, centre and size (X = 4), in [0, 1] of the image.
        positions_BQE: their position encodings, the same for all layers; None to compute them from the boxes in each.
        allowed_BQQ: False where a query may not attend to another; None if all may.
        logits_BQR: scores that the layers refine, as they refine the boxes; None if each layer scores afresh.
    """

    contents_BQE: Tensor
    boxes_BQX: Tensor
    positions_BQE: Tensor | None
    allowed_BQQ: Tensor | None = None
    logits_BQR: Tensor | None = None


class Maps(nn.Module):
    """The backbone's maps at one width, and further ones, each half of the one before.

    If `fused`, coarse maps are added to finer ones, top down, and smoothed (a feature pyramid, Lin et al. 2017).
    """

    def __init__(self, channels: Sequence[int], extra: int, dim: int, fused: bool):
        super().__init__()
        steps = [nn.Conv2d(width, dim, 1) for width in channels]
        steps += [nn.Conv2d(width, dim, 3, 2, 1) for width in (channels[-1], *[dim] * (extra - 1))[:extra]]
        for step in steps:
            nn.init.xavier_uniform_(step.weight)
            nn.init.zeros_(step.bias)  # type: ignore[arg-type]
        self.steps = nn.ModuleList(nn.Sequential(step, nn.GroupNorm(32, dim)) for step in steps)
        self.smooth = nn.ModuleList(_smooth(dim) for _ in steps) if fused else None

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """(B, dim, H, W) each, finest first."""
        return self.fuse(self.project(features))

    def project(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The maps before they are fused."""
        maps = [step(x_BCHW) for step, x_BCHW in zip(self.steps, features, strict=False)]
        last_BCHW = features[-1]
        for step in list(self.steps)[len(features) :]:
            last_BCHW = step(last_BCHW)
            maps.append(last_BCHW)
        return maps

    def fuse(self, maps: list[Tensor]) -> list[Tensor]:
        """The maps fused, or as they are where that is switched off."""
        if self.smooth is None:
            return maps
        for level in range(len(maps) - 2, -1, -1):
            maps[level] = maps[level] + F.interpolate(maps[level + 1], size=maps[level].shape[-2:], mode="nearest")
        return [block(x_BCHW) for block, x_BCHW in zip(self.smooth, maps, strict=True)]


def _smooth(dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1, bias=False), nn.GroupNorm(dim // 8, dim), nn.ReLU())


class DeformableEncoder(nn.Module):
    """Each cell attends to a few points around itself on all maps."""

    def __init__(self, dim: int, hidden: int, heads: int, levels: int, points: int, layers: int, dropout: float):
        super().__init__()
        self.level_embedding = nn.Parameter(torch.randn(levels, dim))
        self.layers = nn.ModuleList(EncoderLayer(dim, hidden, heads, levels, points, dropout) for _ in range(layers))

    def forward(self, maps: Sequence[Tensor], valid: Sequence[Tensor]) -> MultiScaleCells:
        """The encoded cells of maps (B, E, H, W); `valid` is False where a cell is padding, (B, H, W) each."""
        dim = maps[0].shape[1]
        codes = [sine_2d(valid_BHW, dim, True, shift=0.5) for valid_BHW in valid]
        codes = [code_BME + level_E for code_BME, level_E in zip(codes, self.level_embedding, strict=True)]
        positions_BTE = torch.cat(codes, 1).to(maps[0].dtype)
        cells = flatten_maps(maps, valid)
        reference_BTV2 = cells.centres_BT2[:, :, None] * cells.valid_ratios_BV2[:, None]
        for layer in self.layers:
            cells = cells._replace(x_BTE=layer(cells, positions_BTE, reference_BTV2))
        return cells


class EncoderLayer(nn.Module):
    """Deformable self-attention of the cells, then an MLP."""

    def __init__(self, dim: int, hidden: int, heads: int, levels: int, points: int, dropout: float):
        super().__init__()
        self.attention, self.mlp = DeformableAttention(dim, heads, levels, points), mlp(dim, hidden, dropout)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)

    def forward(self, cells: MultiScaleCells, positions_BTE: Tensor, reference_BTV2: Tensor) -> Tensor:
        """States of the cells after this layer, (B, T, E)."""
        x_BTE = cells.x_BTE
        attended_BTE = self.attention(x_BTE + positions_BTE, reference_BTV2, x_BTE, cells.padding_BT, cells.shapes)
        x_BTE = self.norm1(x_BTE + self.dropout(attended_BTE))
        return self.norm2(x_BTE + self.dropout(self.mlp(x_BTE)))


class DeformableDecoder(nn.Module):
    """The layers that the queries go through; `Deformable` makes predictions after each."""

    def __init__(self, dim: int, hidden: int, heads: int, levels: int, points: int, layers: int, dropout: float):
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(dim, hidden, heads, levels, points, dropout) for _ in range(layers))


class DecoderLayer(nn.Module):
    """Self-attention of the queries, deformable attention to points around their boxes, then an MLP."""

    def __init__(self, dim: int, hidden: int, heads: int, levels: int, points: int, dropout: float):
        super().__init__()
        self.self_attention = Attention(dim, heads)
        self.attention, self.mlp = DeformableAttention(dim, heads, levels, points), mlp(dim, hidden, dropout)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.dropout = Dropout(dropout)

    def forward(
        self, x_BQE: Tensor, positions_BQE: Tensor, boxes_BQX: Tensor, cells: MultiScaleCells, mask: Tensor | None
    ) -> Tensor:
        """States of the queries after this layer, (B, Q, E).

        Args:
            x_BQE, positions_BQE, boxes_BQX: see `Queries`.
            cells: what the queries attend to.
            mask: False where a query may not attend to another, or a bias of the attention, (B, 1 or heads, Q, Q).
        """
        positioned_BQE = x_BQE + positions_BQE
        keys_values = self.self_attention.keys_values(positioned_BQE, x_BQE)
        x_BQE = self.norm1(x_BQE + self.dropout(self.self_attention(positioned_BQE, keys_values, mask=mask)))
        ratios_B1VX = cells.valid_ratios_BV2.repeat(1, 1, boxes_BQX.shape[-1] // 2)[:, None]
        reference_BQVX = boxes_BQX[:, :, None] * ratios_B1VX
        attended_BQE = self.attention(
            x_BQE + positions_BQE, reference_BQVX, cells.x_BTE, cells.padding_BT, cells.shapes
        )
        x_BQE = self.norm2(x_BQE + self.dropout(attended_BQE))
        return self.norm3(x_BQE + self.dropout(self.mlp(x_BQE)))


def flatten_maps(maps: Sequence[Tensor], valid: Sequence[Tensor]) -> MultiScaleCells:
    """The cells of maps (B, E, H, W) as one sequence with their positions; `valid` is False on padding."""
    x_BTE = torch.cat([map_BEHW.flatten(2).transpose(1, 2) for map_BEHW in maps], 1)
    padding_BT = ~torch.cat([valid_BHW.flatten(1) for valid_BHW in valid], 1)
    shapes = [(map_BEHW.shape[-2], map_BEHW.shape[-1]) for map_BEHW in maps]
    counts = [
        torch.stack([valid_BHW[:, 0].sum(1), valid_BHW[:, :, 0].sum(1)], 1) for valid_BHW in valid
    ]  # columns, rows
    centres, reach, ratios, levels = [], [], [], []
    for level, ((height, width), count_B2) in enumerate(zip(shapes, counts, strict=True)):
        rows, columns = (torch.arange(n, device=x_BTE.device) + 0.5 for n in (height, width))
        grid_M2 = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).flatten(0, 1)
        centres.append(grid_M2 / count_B2[:, None])
        reach.append((1 / count_B2)[:, None].expand_as(centres[-1]))
        ratios.append(count_B2 / torch.tensor([width, height], device=x_BTE.device))
        levels.append(torch.full((height * width,), level, device=x_BTE.device))
    return MultiScaleCells(
        x_BTE, padding_BT, shapes, torch.stack(ratios, 1), torch.cat(centres, 1), torch.cat(reach, 1), torch.cat(levels)
    )


def box_encoding(boxes_BQ4: Tensor, dim: int) -> Tensor:
    """Sine encodings (B, Q, 2 * dim) of boxes in [0, 1]: each coordinate as an angle up to 2 pi, at dim / 4 rates."""
    return sine_1d(boxes_BQ4 * (2 * math.pi), dim // 2).flatten(-2)


def inverse_sigmoid(x: Tensor) -> Tensor:
    """The logit, with both probabilities at least 1e-5."""
    return torch.log(x.clamp(1e-5, 1.0) / (1 - x).clamp(1e-5, 1.0))

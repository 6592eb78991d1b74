"""The parts of `deformable`: maps of one width, and layers that look at points on them; each addition is followed by
its norm (Deformable DETR, section 4.1; numbers as in Hugging Face's implementation)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from boxwright.models.layers.attention import Attention
from boxwright.models.layers.deformable_attention import PointAttention, Shapes
from boxwright.models.layers.dropout import Dropout
from boxwright.models.layers.post_norm import mlp, sine_1d, sine_2d


class MultiScaleCells(NamedTuple):
    """The cells of all maps, one map behind the other, row by row, finest map first.

    Attributes:
        x_BTE: their states.
        hidden_BT: True where a cell is padding.
        shapes: height and width of each map.
        part_BV2: the part of each map that is image, (width, height) in [0, 1].
        places_BT2: centre (x, y) of each cell, in [0, 1] of the image.
        reach_BT2: width and height of a cell, in the same units.
        level_T: which map a cell is of.
    """

    x_BTE: Tensor
    hidden_BT: Tensor
    shapes: Shapes
    part_BV2: Tensor
    places_BT2: Tensor
    reach_BT2: Tensor
    level_T: Tensor


class Queries(NamedTuple):
    """Where a decoder begins.

    Attributes:
        contents_BQE: what each query knows.
        boxes_BQX: where it looks, in [0, 1] of the image: points (X = 2) or boxes, centre and size (X = 4).
        places_BQE: the code of its place, the same for all layers; None to make it of its box, layer by layer.
        apart_BQQ: False where a query may not look at another; None if all may.
        logits_BQR: scores that the layers correct, as they correct the boxes; None if each layer scores afresh.
    """

    contents_BQE: Tensor
    boxes_BQX: Tensor
    places_BQE: Tensor | None
    apart_BQQ: Tensor | None = None
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
        maps = [step(x_BCHW) for step, x_BCHW in zip(self.steps, features, strict=False)]
        last_BCHW = features[-1]
        for step in list(self.steps)[len(features) :]:
            last_BCHW = step(last_BCHW)
            maps.append(last_BCHW)
        return maps if self.smooth is None else self._fuse(maps, self.smooth)

    def _fuse(self, maps: list[Tensor], smooth: nn.ModuleList) -> list[Tensor]:
        for level in range(len(maps) - 2, -1, -1):
            maps[level] = maps[level] + F.interpolate(maps[level + 1], size=maps[level].shape[-2:], mode="nearest")
        return [block(x_BCHW) for block, x_BCHW in zip(smooth, maps, strict=True)]


def _smooth(dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1, bias=False), nn.GroupNorm(dim // 8, dim), nn.ReLU())


class DeformableEncoder(nn.Module):
    """Each cell looks at a few points of all maps, around itself."""

    def __init__(self, dim: int, hidden: int, heads: int, levels: int, points: int, layers: int, dropout: float):
        super().__init__()
        self.level_embedding = nn.Parameter(torch.randn(levels, dim))
        self.layers = nn.ModuleList(EncoderLayer(dim, hidden, heads, levels, points, dropout) for _ in range(layers))

    def forward(self, maps: Sequence[Tensor], seen: Sequence[Tensor]) -> MultiScaleCells:
        """The encoded cells of maps (B, E, H, W), and which of them are image, (B, H, W) bool."""
        dim = maps[0].shape[1]
        codes = [sine_2d(seen_BHW, dim, True, shift=0.5) for seen_BHW in seen]
        codes = [code_BME + level_E for code_BME, level_E in zip(codes, self.level_embedding, strict=True)]
        codes_BTE = torch.cat(codes, 1).to(maps[0].dtype)
        cells = lay_out(maps, seen)
        places_BTV2 = cells.places_BT2[:, :, None] * cells.part_BV2[:, None]
        for layer in self.layers:
            cells = cells._replace(x_BTE=layer(cells, codes_BTE, places_BTV2))
        return cells


class EncoderLayer(nn.Module):
    """Cells look at points, then an MLP."""

    def __init__(self, dim: int, hidden: int, heads: int, levels: int, points: int, dropout: float):
        super().__init__()
        self.attention, self.mlp = PointAttention(dim, heads, levels, points), mlp(dim, hidden, dropout)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)

    def forward(self, cells: MultiScaleCells, codes_BTE: Tensor, places_BTV2: Tensor) -> Tensor:
        """The next layer's view of the cells, (B, T, E)."""
        x_BTE = cells.x_BTE
        found_BTE = self.attention(x_BTE + codes_BTE, places_BTV2, x_BTE, cells.hidden_BT, cells.shapes)
        x_BTE = self.norm1(x_BTE + self.dropout(found_BTE))
        return self.norm2(x_BTE + self.dropout(self.mlp(x_BTE)))


class DeformableDecoder(nn.Module):
    """The layers that the queries go through; what each of them says is `Deformable.say`."""

    def __init__(self, dim: int, hidden: int, heads: int, levels: int, points: int, layers: int, dropout: float):
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(dim, hidden, heads, levels, points, dropout) for _ in range(layers))


class DecoderLayer(nn.Module):
    """Queries look at each other, then at points of the maps around their boxes, then an MLP."""

    def __init__(self, dim: int, hidden: int, heads: int, levels: int, points: int, dropout: float):
        super().__init__()
        self.self_attention = Attention(dim, heads)
        self.attention, self.mlp = PointAttention(dim, heads, levels, points), mlp(dim, hidden, dropout)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.dropout = Dropout(dropout)

    def forward(
        self, x_BQE: Tensor, places_BQE: Tensor, boxes_BQX: Tensor, cells: MultiScaleCells, mask: Tensor | None
    ) -> Tensor:
        """The next layer's view of the queries, (B, Q, E); see `Queries`. `mask` is False where a query must not look
        at another, or a bias of how much it does, (B, 1 or heads, Q, Q).
        """
        placed_BQE = x_BQE + places_BQE
        seen = self.self_attention.keys_values(placed_BQE, x_BQE)
        x_BQE = self.norm1(x_BQE + self.dropout(self.self_attention(placed_BQE, seen, mask=mask)))
        parts_B1VX = cells.part_BV2.repeat(1, 1, boxes_BQX.shape[-1] // 2)[:, None]
        at_BQVX = boxes_BQX[:, :, None] * parts_B1VX
        found_BQE = self.attention(x_BQE + places_BQE, at_BQVX, cells.x_BTE, cells.hidden_BT, cells.shapes)
        x_BQE = self.norm2(x_BQE + self.dropout(found_BQE))
        return self.norm3(x_BQE + self.dropout(self.mlp(x_BQE)))


def lay_out(maps: Sequence[Tensor], seen: Sequence[Tensor]) -> MultiScaleCells:
    """The cells of maps (B, E, H, W) side by side, and where they are; `seen` is False on padding."""
    x_BTE = torch.cat([map_BEHW.flatten(2).transpose(1, 2) for map_BEHW in maps], 1)
    hidden_BT = ~torch.cat([seen_BHW.flatten(1) for seen_BHW in seen], 1)
    shapes = [(map_BEHW.shape[-2], map_BEHW.shape[-1]) for map_BEHW in maps]
    counts = [torch.stack([seen_BHW[:, 0].sum(1), seen_BHW[:, :, 0].sum(1)], 1) for seen_BHW in seen]  # columns, rows
    places, reach, parts, levels = [], [], [], []
    for level, ((height, width), count_B2) in enumerate(zip(shapes, counts, strict=True)):
        rows, columns = (torch.arange(n, device=x_BTE.device) + 0.5 for n in (height, width))
        grid_M2 = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).flatten(0, 1)
        places.append(grid_M2 / count_B2[:, None])
        reach.append((1 / count_B2)[:, None].expand_as(places[-1]))
        parts.append(count_B2 / torch.tensor([width, height], device=x_BTE.device))
        levels.append(torch.full((height * width,), level, device=x_BTE.device))
    return MultiScaleCells(
        x_BTE, hidden_BT, shapes, torch.stack(parts, 1), torch.cat(places, 1), torch.cat(reach, 1), torch.cat(levels)
    )


def box_codes(boxes_BQ4: Tensor, dim: int) -> Tensor:
    """Codes (B, Q, 2 * dim) of boxes in [0, 1]: each coordinate as an angle up to 2 pi, at dim / 4 rates."""
    return sine_1d(boxes_BQ4 * (2 * math.pi), dim // 2).flatten(-2)


def inverse_sigmoid(x: Tensor) -> Tensor:
    """The logit, with both probabilities at least 1e-5."""
    return torch.log(x.clamp(1e-5, 1.0) / (1 - x).clamp(1e-5, 1.0))

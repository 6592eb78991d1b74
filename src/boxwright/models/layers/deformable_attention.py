"""Attention to a few points on several maps ("Deformable DETR", Zhu et al. 2021, eq. 2 and 3).

Each query says where to look, relative to a place of its own, and how much of what it finds there it takes. The price
does not grow with the size of the maps, as it does where everything looks at everything.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shapes = Sequence[tuple[int, int]]  # height and width of each map, finest first


class Points(NamedTuple):
    """Where each query looks, x before y in [0, 1] of the maps, and how much it takes of each, 1 in sum."""

    places_BQHVP2: Tensor  # of each head H, on each map V, P points
    weights_BQHVP: Tensor


def gather_points(values_BTHE: Tensor, shapes: Shapes, points: Points) -> Tensor:
    """(B, Q, H * E): what the queries find at their points, bilinearly, zero beyond the edges.

    Pure torch, without a compiled companion: one `grid_sample` a map. Values and places must have the same type, and
    that be float32 where maps are large: half precision can't tell neighbouring cells apart.

    Args:
        values_BTHE: of the cells of all maps, one map behind the other, row by row, for each head.
        shapes: of the maps.
        points: where to look.
    """
    images, _, heads, width = values_BTHE.shape
    values_NET = values_BTHE.permute(0, 2, 3, 1).flatten(0, 1)  # N: heads of images
    grids_VNPQ2 = (2 * points.places_BQHVP2 - 1).permute(3, 0, 2, 4, 1, 5).flatten(1, 2)
    weights_VNPQ = points.weights_BQHVP.permute(3, 0, 2, 4, 1).flatten(1, 2)
    maps = values_NET.split([height * across for height, across in shapes], 2)
    found_NEQ = torch.zeros((), device=values_BTHE.device)
    for map_NET, shape, grid_NPQ2, weights_NPQ in zip(maps, shapes, grids_VNPQ2, weights_VNPQ, strict=True):
        there_NEPQ = F.grid_sample(map_NET.unflatten(2, shape), grid_NPQ2, align_corners=False)
        found_NEQ = found_NEQ + (there_NEPQ * weights_NPQ[:, None]).sum(2)
    return found_NEQ.view(images, heads * width, -1).transpose(1, 2)


class PointAttention(nn.Module):
    """Multi-head attention to points.

    Args:
        dim: width of queries, cells and answers.
        heads: each is dim / heads wide.
        levels: maps.
        points: that each head looks at on each map.
    """

    def __init__(self, dim: int, heads: int, levels: int, points: int):
        super().__init__()
        assert dim % heads == 0, f"{dim} can't be split into {heads} heads"
        self.heads, self.levels, self.points = heads, levels, points
        self.offset, self.weight = nn.Linear(dim, heads * levels * points * 2), nn.Linear(dim, heads * levels * points)
        self.value, self.output = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.begin()

    def begin(self) -> None:
        """Each head begins by looking in a direction of its own, 1 to P cells far, and weighs all points alike."""
        angles_H = torch.arange(self.heads) * (2 * math.pi / self.heads)
        rays_H2 = torch.stack([angles_H.cos(), angles_H.sin()], -1)
        rays_H2 = rays_H2 / rays_H2.abs().amax(-1, keepdim=True)
        steps_P1 = torch.arange(1, self.points + 1)[:, None]
        with torch.no_grad():
            self.offset.bias.copy_((rays_H2[:, None, None] * steps_P1).expand(-1, self.levels, -1, -1).flatten())
        for layer in (self.offset, self.weight):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.weight.bias)
        for layer in (self.value, self.output):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def look(self, queries_BQE: Tensor, places_BQVX: Tensor, shapes: Shapes) -> Points:
        """Where the queries look, from places (x, y) in [0, 1] of each map, by offsets in cells, or from boxes
        (x, y, width, height), by offsets in half sizes over the number of points.
        """
        sizes = (self.heads, self.levels, self.points)
        offsets_BQHVP2 = self.offset(queries_BQE).float().unflatten(-1, (*sizes, 2))
        weights_BQHVP = (
            self.weight(queries_BQE).float().unflatten(-1, (self.heads, -1)).softmax(-1).unflatten(-1, sizes[1:])
        )
        places_BQ1V1X = places_BQVX.float()[:, :, None, :, None]
        if places_BQVX.shape[-1] == 2:
            cells_V2 = torch.tensor([(width, height) for height, width in shapes], device=queries_BQE.device)
            moved_BQHVP2 = offsets_BQHVP2 / cells_V2[:, None]
        else:
            moved_BQHVP2 = offsets_BQHVP2 / self.points * places_BQ1V1X[..., 2:] * 0.5
        return Points(places_BQ1V1X[..., :2] + moved_BQHVP2, weights_BQHVP)

    def forward(
        self, queries_BQE: Tensor, places_BQVX: Tensor, cells_BTE: Tensor, padding_BT: Tensor, shapes: Shapes
    ) -> Tensor:
        """(B, Q, E): what the queries find.

        Args:
            queries_BQE: what asks.
            places_BQVX: where each asks from, on each map; points (X = 2) or boxes (X = 4), in [0, 1] of the map.
            cells_BTE: the cells of all maps.
            hidden_BT: True where a cell is padding, and holds nothing.
            shapes: of the maps.
        """
        values_BTE = self.value(cells_BTE).masked_fill(padding_BT[..., None], 0)
        points = self.look(queries_BQE, places_BQVX, shapes)
        values_BTHE = values_BTE.unflatten(-1, (self.heads, -1)).to(points.places_BQHVP2.dtype)
        return self.output(gather_points(values_BTHE, shapes, points).to(queries_BQE.dtype))

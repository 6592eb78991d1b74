"""Attention to a few points on several maps ("Deformable DETR", Zhu et al. 2021, eq. 2 and 3).

Each query predicts offsets from its reference point, and a weight for the feature at each. The cost does not grow with
the size of the maps, as that of global attention does.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shapes = Sequence[tuple[int, int]]  # height and width of each map, finest first


class SamplingPoints(NamedTuple):
    """P points of each query, for each head H on each map V.

    Attributes:
        locations_BQHVP2: (x, y) in [0, 1] of the map.
        weights_BQHVP: attention weights; they sum to 1 over maps and points.
    """

    locations_BQHVP2: Tensor
    weights_BQHVP: Tensor


def gather_points(values_BTHE: Tensor, shapes: Shapes, points: SamplingPoints) -> Tensor:
    """Weighted sums of the values at the points, (B, Q, H * E), bilinear, zero beyond the edges.

    Pure torch: one `grid_sample` per map. Values and locations must have the same dtype, which must be float32 where
    maps are large: half precision can't tell neighbouring cells apart.

    Args:
        values_BTHE: values of the cells of all maps, map after map, row by row, for each head.
        shapes: height and width of each map.
        points: where to sample.
    """
    images, _, heads, width = values_BTHE.shape
    values_NET = values_BTHE.permute(0, 2, 3, 1).flatten(0, 1)  # N: heads of images
    grids_VNPQ2 = (2 * points.locations_BQHVP2 - 1).permute(3, 0, 2, 4, 1, 5).flatten(1, 2)
    weights_VNPQ = points.weights_BQHVP.permute(3, 0, 2, 4, 1).flatten(1, 2)
    maps = values_NET.split([height * across for height, across in shapes], 2)
    sum_NEQ = torch.zeros((), device=values_BTHE.device)
    for map_NET, shape, grid_NPQ2, weights_NPQ in zip(maps, shapes, grids_VNPQ2, weights_VNPQ, strict=True):
        sampled_NEPQ = F.grid_sample(map_NET.unflatten(2, shape), grid_NPQ2, align_corners=False)
        sum_NEQ = sum_NEQ + (sampled_NEPQ * weights_NPQ[:, None]).sum(2)
    return sum_NEQ.view(images, heads * width, -1).transpose(1, 2)


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention.

    Args:
        dim: width of queries, cells and outputs.
        heads: each is dim / heads wide.
        levels: number of maps.
        points: points that each head samples on each map.
    """

    def __init__(self, dim: int, heads: int, levels: int, points: int):
        super().__init__()
        assert dim % heads == 0, f"{dim} can't be split into {heads} heads"
        self.heads, self.levels, self.points = heads, levels, points
        self.offset, self.weight = nn.Linear(dim, heads * levels * points * 2), nn.Linear(dim, heads * levels * points)
        self.value, self.output = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self._init_weights()

    def _init_weights(self) -> None:
        """Offsets start in one direction per head, 1 to P cells long, and weights are equal, as published."""
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

    def sampling_points(self, queries_BQE: Tensor, reference_BQVX: Tensor, shapes: Shapes) -> SamplingPoints:
        """The points that the queries attend to.

        Offsets are in cells from reference points (x, y), or in half sizes over the number of points from boxes
        (x, y, width, height).
        """
        sizes = (self.heads, self.levels, self.points)
        offsets_BQHVP2 = self.offset(queries_BQE).float().unflatten(-1, (*sizes, 2))
        weights_BQHVP = (
            self.weight(queries_BQE).float().unflatten(-1, (self.heads, -1)).softmax(-1).unflatten(-1, sizes[1:])
        )
        reference_BQ1V1X = reference_BQVX.float()[:, :, None, :, None]
        if reference_BQVX.shape[-1] == 2:
            cells_V2 = torch.tensor([(width, height) for height, width in shapes], device=queries_BQE.device)
            shift_BQHVP2 = offsets_BQHVP2 / cells_V2[:, None]
        else:
            shift_BQHVP2 = offsets_BQHVP2 / self.points * reference_BQ1V1X[..., 2:] * 0.5
        return SamplingPoints(reference_BQ1V1X[..., :2] + shift_BQHVP2, weights_BQHVP)

    def forward(
        self, queries_BQE: Tensor, reference_BQVX: Tensor, cells_BTE: Tensor, padding_BT: Tensor, shapes: Shapes
    ) -> Tensor:
        """Attention output, (B, Q, E).

        Args:
            queries_BQE: states of the queries, with their positions.
            reference_BQVX: reference points (X = 2) or boxes (X = 4) on each map, in [0, 1] of the map.
            cells_BTE: the cells of all maps.
            padding_BT: True where a cell is padding; its value is zero.
            shapes: height and width of each map.
        """
        values_BTE = self.value(cells_BTE).masked_fill(padding_BT[..., None], 0)
        points = self.sampling_points(queries_BQE, reference_BQVX, shapes)
        values_BTHE = values_BTE.unflatten(-1, (self.heads, -1)).to(points.locations_BQHVP2.dtype)
        return self.output(gather_points(values_BTHE, shapes, points).to(queries_BQE.dtype))

"""Predictions of every cell of a feature pyramid: class scores, and a box as distances to its four sides."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PRIOR = 0.01  # score of an untrained cell, so that the many negatives do not swamp the first steps


class Cells(NamedTuple):
    """Predictions of the Q cells of all levels, finest level first, row by row.

    Attributes:
        many_BQK: class logits, high in several cells per object.
        boxes_BQ4: xyxy in [0, 1] of the canvas.
        features_BQC: of the class tower.
        centres_Q2: x and y of the cells, in the same unit as boxes.
        reach_Q2: their strides; also the least half side of the region in which a cell can be assigned to an object.
    """

    many_BQK: Tensor
    boxes_BQ4: Tensor
    features_BQC: Tensor
    centres_Q2: Tensor
    reach_Q2: Tensor

    def best(self, most: int, ranking_BQ: Tensor | None = None) -> Tensor:
        """The cells of highest score, or rank where one is given, (B, R): as many as asked for, or all."""
        ranking_BQ = self.many_BQK.amax(-1) if ranking_BQ is None else ranking_BQ
        return ranking_BQ.topk(min(most, len(self.centres_Q2))).indices


class FeaturePyramid(nn.Module):
    """A feature pyramid (Lin et al. 2017): coarse levels are added to finer ones, top down.

    Args:
        channels: of the maps.
        width: of the pyramid.
        smooth: each level gets a 3x3 convolution at the end.
    """

    def __init__(self, channels: list[int], width: int, smooth: bool = True):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.smooth = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1) if smooth else nn.Identity() for _ in channels
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps of one width, finest first as given."""
        maps = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        for level in range(len(maps) - 2, -1, -1):
            maps[level] = maps[level] + F.interpolate(maps[level + 1], size=maps[level].shape[-2:], mode="nearest")
        return [smooth(x) for smooth, x in zip(self.smooth, maps, strict=True)]


class DenseHead(nn.Module):
    """Two towers shared by all levels, and a learned scale of the distances of each level (FCOS, Tian et al. 2019).

    Args:
        width: channels of maps and towers.
        depth: 3x3 convolutions in each tower.
        levels: of the pyramid.
        classes: their number.
        lean: the towers share a 3x3 convolution before them, and predictions come from 1x1 kernels.
    """

    def __init__(self, width: int, depth: int, levels: int, classes: int, lean: bool = False):
        super().__init__()
        self.shared = _block(width) if lean else nn.Identity()
        self.class_tower = nn.Sequential(*(_block(width) for _ in range(depth)))
        self.box_tower = nn.Sequential(*(_block(width) for _ in range(depth)))
        kernel = 1 if lean else 3
        self.many = nn.Conv2d(width, classes, kernel, padding=kernel // 2)
        self.distance = nn.Conv2d(width, 4, kernel, padding=kernel // 2)
        self.log_scale = nn.Parameter(torch.zeros(levels))
        nn.init.constant_(self.many.bias, math.log(PRIOR / (1 - PRIOR)))  # type: ignore[arg-type]

    def forward(self, x_BCHW: Tensor, level: int) -> tuple[Tensor, Tensor, Tensor]:
        """Class logits (B, HW, K), distances (B, HW, 4; in cells, >= 0) and features (B, HW, C) of a level."""
        shared_BCHW = self.shared(x_BCHW)
        tower_BCHW = self.class_tower(shared_BCHW)
        distances = F.softplus(self.distance(self.box_tower(shared_BCHW)) + 1) * self.log_scale[level].exp()
        many, sides, features = (y.flatten(2).transpose(1, 2) for y in (self.many(tower_BCHW), distances, tower_BCHW))
        return many, sides, features


def _block(width: int) -> nn.Sequential:
    conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(width // 8, width), nn.ReLU(inplace=True))


def predict_cells(head: DenseHead, maps: Sequence[Tensor], strides: Sequence[int], size: torch.Size) -> Cells:
    """The predictions of a head for all levels.

    Args:
        head: shared by the levels.
        maps: (B, C, H, W) each, finest first.
        strides: canvas pixels per cell of each.
        size: height and width of the canvas, in pixels.
    """
    many, distances, features = zip(*(head(x, level) for level, x in enumerate(maps)), strict=True)
    centres_Q2, reach_Q2 = _cell_grid(maps, strides, size)
    distances_BQ4 = torch.cat(distances, 1).float() * reach_Q2.repeat(1, 2)
    boxes_BQ4 = torch.cat([centres_Q2 - distances_BQ4[..., :2], centres_Q2 + distances_BQ4[..., 2:]], -1)
    return Cells(torch.cat(many, 1).float(), boxes_BQ4, torch.cat(features, 1), centres_Q2, reach_Q2)


def _cell_grid(maps: Sequence[Tensor], strides: Sequence[int], size: torch.Size) -> tuple[Tensor, Tensor]:
    """Centres and strides of all cells, as fractions of the canvas, (Q, 2) each, x first."""
    canvas = torch.tensor([size[1], size[0]], device=maps[0].device)
    centres, reach = [], []
    for x, stride in zip(maps, strides, strict=True):
        rows, columns = (torch.arange(n, device=x.device) + 0.5 for n in x.shape[-2:])
        grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).flatten(0, 1)
        centres.append(grid * stride / canvas)
        reach.append((stride / canvas).expand_as(grid))
    return torch.cat(centres), torch.cat(reach)

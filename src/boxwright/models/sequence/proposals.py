"""Proposals that a sequence is copied from: the best cells of a feature pyramid, each with a box and class scores.

        maps ── head ── best cells ──┬─ features of the cell ────────────┐
                                     └─ the maps at 3x3 points of its box ┴─ perceptron ── box, class scores, state

A sequence decoder alone needs hundreds of epochs to learn where anything is; a dense head learns it from a few hundred
images, as every cell is taught. So the decoder copies from its cells ("Get to the point", See et al. 2017, for text),
and learns what a cell cannot know. The head is taught one to many (Feng et al. 2021), like that of `dense`; auxiliary
dense heads also make better encoders ("DETRs with collaborative hybrid assignments training", Zong et al. 2023).
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from boxwright.boxes import xyxy_to_cxcywh
from boxwright.models.layers.attention import norm
from boxwright.models.layers.deformable_transformer import box_encoding
from boxwright.models.layers.dense_head import Cells, DenseHead, FeaturePyramid, predict_cells
from boxwright.models.losses.task_aligned import assigned_losses, candidates, gather_rows, one_to_many
from boxwright.types import Batch

STRIDES = (8, 16, 32)  # canvas pixels per cell of each map
POINTS = 3  # points along a side of a box at which the maps are sampled
FINEST_BOX = 32.0  # pixels: boxes up to this size are sampled on the finest map, twice as large ones on the next
SPREAD = 0.05  # initial scale of a side's distribution, relative to the box
LEAST_SPREAD = 5e-4  # in [0, 1] of the canvas


class Proposals(NamedTuple):
    """C proposals for each image, and the tokens in which they can be written.

    Attributes:
        states_BCE: what the decoder attends to.
        boxes_BC4: xyxy in [0, 1] of the canvas.
        spreads_BC4: the scale of each side's distribution, in the same unit.
        logits_BCK: class scores before the sigmoid.
        vocabulary: `boxwright.models.sequence.vocabulary.Vocabulary` or the one of patches, for this canvas.
    """

    states_BCE: Tensor
    boxes_BC4: Tensor
    spreads_BC4: Tensor
    logits_BCK: Tensor
    vocabulary: Any


class ProposalOutputs(NamedTuple):
    """Outputs of a detector that copies: the proposals, all cells, and which of them the proposals are, (B, C)."""

    proposals: Proposals
    cells: Cells
    cells_BC: Tensor


class ProposalEncoder(nn.Module):
    """From a backbone's maps to proposals.

    Args:
        inputs: channels of the maps, at `STRIDES`.
        classes: how many there are.
        proposals: cells that become proposals.
        channels, depth: width of the pyramid and convolutions of each tower of the head.
        dim: width of the proposals' states.
    """

    def __init__(
        self,
        inputs: list[int],
        classes: int,
        proposals: int,
        channels: int,
        depth: int,
        dim: int,
    ):
        super().__init__()
        self.count = proposals
        self.pyramid = FeaturePyramid(inputs, channels)
        self.head = DenseHead(channels, depth, len(STRIDES), classes)
        self.enter = nn.Linear(channels + classes, dim)
        self.place = nn.Linear(2 * dim, dim)
        self.region = nn.Sequential(nn.Linear(POINTS**2 * channels, dim), nn.GELU(), nn.Linear(dim, dim))
        self.norm = norm(dim)
        self.refine, self.spread, self.rescore = nn.Linear(dim, 4), nn.Linear(dim, 4), nn.Linear(dim, classes)
        for layer in (self.refine, self.spread, self.rescore):  # at first, proposals are what the head predicts
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.constant_(self.spread.bias, math.log(SPREAD))

    def forward(self, features: list[Tensor], size: torch.Size, vocabulary: Any) -> ProposalOutputs:
        """The proposals of a batch.

        Args:
            features: the backbone's maps, finest first.
            size: height and width of the canvas, in pixels.
            vocabulary: the token ids for this canvas.
        """
        maps = self.pyramid(features)
        cells = predict_cells(self.head, maps, STRIDES, size)
        cells_BC = cells.best(self.count)
        features_BCX, logits_BCK, boxes_BC4 = (
            gather_rows(x, cells_BC) for x in (cells.features_BQC, cells.many_BQK, cells.boxes_BQ4)
        )
        logits_BCK, boxes_BC4 = logits_BCK.detach(), boxes_BC4.detach()
        x_BCE = self.enter(torch.cat([features_BCX, logits_BCK.to(features_BCX.dtype)], -1))
        x_BCE = x_BCE + self.place(box_encoding(xyxy_to_cxcywh(boxes_BC4), x_BCE.shape[-1]).to(x_BCE.dtype))
        x_BCE = self.norm(x_BCE + self.region(sample_boxes(maps, boxes_BC4, size)))
        sizes_BC4 = (boxes_BC4[..., 2:] - boxes_BC4[..., :2]).repeat(1, 1, 2)
        refined_BC4 = boxes_BC4 + self.refine(x_BCE).float() * sizes_BC4
        spreads_BC4 = self.spread(x_BCE).float().exp() * sizes_BC4 + LEAST_SPREAD
        logits_BCK = logits_BCK + self.rescore(x_BCE).float()
        return ProposalOutputs(Proposals(x_BCE, refined_BC4, spreads_BC4, logits_BCK, vocabulary), cells, cells_BC)


def sample_boxes(maps: list[Tensor], boxes_BC4: Tensor, size: torch.Size) -> Tensor:
    """The maps at `POINTS` x `POINTS` points of each box, (B, C, points * channels).

    As RoIAlign (He et al. 2017), but on a blend of the two maps that fit the size of the box best.
    """
    share_P = (torch.arange(POINTS, device=boxes_BC4.device) + 0.5) / POINTS
    low_BC2, high_BC2 = boxes_BC4.split(2, -1)
    points_BCP2 = low_BC2[:, :, None] + (high_BC2 - low_BC2)[:, :, None] * share_P[:, None]
    x_BCP, y_BCP = points_BCP2.unbind(-1)
    grid_BCR2 = torch.stack(
        [x_BCP[:, :, None].expand(-1, -1, POINTS, -1), y_BCP[..., None].expand(-1, -1, -1, POINTS)], -1
    ).flatten(2, 3)
    pixels_2 = torch.tensor([size[1], size[0]], device=boxes_BC4.device)
    side_BC = ((high_BC2 - low_BC2) * pixels_2).clamp(min=1).log2().mean(-1)
    level_BC = (side_BC - math.log2(FINEST_BOX)).clamp(0, len(maps) - 1)
    sampled_BXCR = torch.zeros((), device=boxes_BC4.device)
    for level, map_BXHW in enumerate(maps):
        share_BC = (1 - (level_BC - level).abs()).clamp(min=0).to(map_BXHW.dtype)
        at_BXCR = F.grid_sample(map_BXHW, (grid_BCR2 * 2 - 1).to(map_BXHW.dtype), align_corners=False)
        sampled_BXCR = sampled_BXCR + at_BXCR * share_BC[:, None, :, None]
    return sampled_BXCR.permute(0, 2, 3, 1).flatten(2)


def proposal_losses(outputs: ProposalOutputs, batch: Batch) -> dict[str, Tensor]:
    """Losses of all cells (`cell_...`) and of the proposals made of the best ones (`proposal_...`).

    Both have the same assignment, one to many.
    """
    cells, proposals, true_BN4, labels_BN = outputs.cells, outputs.proposals, batch.boxes_BN4, batch.labels_BN
    pairs_BNQ = candidates(cells.centres_Q2, cells.reach_Q2, true_BN4, batch.valid_BN)
    quality_BNQ = one_to_many(cells.many_BQK, cells.boxes_BQ4, true_BN4, labels_BN, pairs_BNQ)
    quality_BNC = quality_BNQ.gather(2, outputs.cells_BC[:, None].expand(-1, quality_BNQ.shape[1], -1))
    every = assigned_losses(cells.many_BQK, cells.boxes_BQ4, true_BN4, labels_BN, quality_BNQ)
    best = assigned_losses(proposals.logits_BCK, proposals.boxes_BC4, true_BN4, labels_BN, quality_BNC)
    return {f"cell_{name}": value for name, value in every.items()} | {
        f"proposal_{name}": value for name, value in best.items()
    }

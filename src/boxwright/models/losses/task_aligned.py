"""Task-aligned assignment: several cells for each object, those best in class and box (TOOD, Feng et al. 2021)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from boxwright.boxes import giou, iou
from boxwright.models.losses.focal import quality_focal
from boxwright.models.losses.normaliser import normaliser

TOP_CELLS = 10  # cells assigned to an object


def candidates(centres_Q2: Tensor, reach_Q2: Tensor, boxes_BN4: Tensor, valid_BN: Tensor) -> Tensor:
    """Cells whose centre lies in the object, or within a cell's reach of the centre of a small one, (B, N, Q) bool.

    Args:
        centres_Q2: x and y of the cells, in the unit of the boxes, or (B, Q, 2).
        reach_Q2: least half width and half height of the region in which cells are candidates, or (B, Q, 2).
        boxes_BN4: xyxy.
        valid_BN: False on padding rows.
    """
    low, high = boxes_BN4[:, :, None, :2], boxes_BN4[:, :, None, 2:]
    centres, reach = (x if x.ndim == 2 else x[:, None] for x in (centres_Q2, reach_Q2))
    inside_BNQ = ((centres - (low + high) / 2).abs() < torch.maximum((high - low) / 2, reach)).all(-1)
    return inside_BNQ & valid_BN[..., None]


@torch.no_grad()
def one_to_many(
    logits_BQK: Tensor, boxes_BQ4: Tensor, true_BN4: Tensor, labels_BN: Tensor, pairs_BNQ: Tensor
) -> Tensor:
    """Target scores of the best-aligned cells of each object, (B, N, Q), else 0 (TOOD, eq. 1).

    Alignment is score^0.5 x IoU^6. A cell of several objects goes to the one that it overlaps most. The target of an
    object's best cell is its IoU, those of the others are proportionally less.

    Args:
        logits_BQK: class scores of the cells, before the sigmoid.
        boxes_BQ4: xyxy of the cells.
        true_BN4: xyxy of the objects.
        labels_BN: their classes.
        pairs_BNQ: the candidates.
    """
    iou_BNQ = iou(true_BN4[:, :, None], boxes_BQ4[:, None])
    align_BNQ = score_of_label(logits_BQK, labels_BN).sqrt() * iou_BNQ**6 * pairs_BNQ
    count = min(TOP_CELLS, align_BNQ.shape[-1])
    best_BNQ = torch.zeros_like(pairs_BNQ).scatter_(-1, align_BNQ.topk(count).indices, True) & pairs_BNQ
    owner_BQ = iou_BNQ.masked_fill(~best_BNQ, -1).argmax(1)
    best_BNQ &= F.one_hot(owner_BQ, pairs_BNQ.shape[1]).transpose(1, 2).bool()
    align_BNQ = align_BNQ * best_BNQ
    tiny = torch.finfo(align_BNQ.dtype).tiny
    relative_BNQ = align_BNQ / align_BNQ.amax(-1, keepdim=True).clamp(min=tiny)
    return relative_BNQ * (iou_BNQ * best_BNQ).amax(-1, keepdim=True)


def score_of_label(logits_BQK: Tensor, labels_BN: Tensor) -> Tensor:
    """Each cell's score for each object's class, (B, N, Q)."""
    index_BQN = labels_BN[:, None].expand(-1, logits_BQK.shape[1], -1)
    return logits_BQK.sigmoid().gather(2, index_BQN).transpose(1, 2)


def assigned_losses(
    logits_BQK: Tensor, boxes_BQ4: Tensor, true_BN4: Tensor, labels_BN: Tensor, quality_BNQ: Tensor
) -> dict[str, Tensor]:
    """Losses of an assignment: quality focal `class`, `l1` (weight 5) and `giou` (weight 2).

    Each is divided by the sum of all target scores.

    Args:
        logits_BQK, boxes_BQ4, true_BN4, labels_BN: see `one_to_many`.
        quality_BNQ: target score of each assigned pair, 0 elsewhere; also the weight of the box losses.
    """
    total = normaliser(quality_BNQ.sum())
    image, obj, cell = quality_BNQ.nonzero(as_tuple=True)
    weight = quality_BNQ[image, obj, cell]
    wanted_BQK = torch.zeros_like(logits_BQK)
    wanted_BQK[image, cell, labels_BN[image, obj]] = weight
    boxes_P4, true_P4 = boxes_BQ4[image, cell], true_BN4[image, obj]
    return {
        "class": quality_focal(logits_BQK, wanted_BQK).sum() / total,
        "l1": 5 * ((boxes_P4 - true_P4).abs().sum(-1) * weight).sum() / total,
        "giou": 2 * ((1 - giou(boxes_P4, true_P4)) * weight).sum() / total,
    }


def gather_rows(x_BQE: Tensor, index_BR: Tensor) -> Tensor:
    """The rows `index_BR` of each image, (B, R, E)."""
    return x_BQE.gather(1, index_BR[..., None].expand(-1, -1, x_BQE.shape[-1]))

"""Cells that learn from objects, where several may from one: those that agree best with it (TOOD, Feng et al. 2021)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from boxwright.boxes import giou, iou
from boxwright.models.losses.focal import across_devices, quality_focal

TEACHERS = 10  # cells an object


def candidates(centres_Q2: Tensor, reach_Q2: Tensor, boxes_BN4: Tensor, valid_BN: Tensor) -> Tensor:
    """(B, N, Q) bool: cells whose centre lies in the object, or within a cell's reach of the centre of a small one.

    Args:
        centres_Q2: x and y of the cells, in the units of the boxes; there may be a dimension of images in front.
        reach_Q2: the least half width and half height of the region that teaches a cell.
        boxes_BN4: xyxy.
        valid_BN: False on padding rows.
    """
    low, high = boxes_BN4[:, :, None, :2], boxes_BN4[:, :, None, 2:]
    centres, reach = (x if x.ndim == 2 else x[:, None] for x in (centres_Q2, reach_Q2))
    inside_BNQ = ((centres - (low + high) / 2).abs() < torch.maximum((high - low) / 2, reach)).all(-1)
    return inside_BNQ & valid_BN[..., None]


@torch.no_grad()
def one_to_many(
    logits_BQK: Tensor, boxes_BQ4: Tensor, truth_BN4: Tensor, labels_BN: Tensor, pairs_BNQ: Tensor
) -> Tensor:
    """Quality of the best-aligned cells of each object (TOOD, eq. 1); (B, N, Q), else 0.

    Alignment is score^0.5 x IoU^6. A cell wanted by several objects goes to the one it overlaps most, and the best
    cell of an object is asked for a score equal to its IoU, the others for proportionally less.

    Args:
        logits_BQK: scores of the cells for each class.
        boxes_BQ4: xyxy of the cells.
        truth_BN4: xyxy of the objects.
        labels_BN: their classes.
        pairs_BNQ: the candidates.
    """
    iou_BNQ = iou(truth_BN4[:, :, None], boxes_BQ4[:, None])
    align_BNQ = score_of_label(logits_BQK, labels_BN).sqrt() * iou_BNQ**6 * pairs_BNQ
    count = min(TEACHERS, align_BNQ.shape[-1])
    best_BNQ = torch.zeros_like(pairs_BNQ).scatter_(-1, align_BNQ.topk(count).indices, True) & pairs_BNQ
    owner_BQ = iou_BNQ.masked_fill(~best_BNQ, -1).argmax(1)
    best_BNQ &= F.one_hot(owner_BQ, pairs_BNQ.shape[1]).transpose(1, 2).bool()
    align_BNQ = align_BNQ * best_BNQ
    tiny = torch.finfo(align_BNQ.dtype).tiny
    relative_BNQ = align_BNQ / align_BNQ.amax(-1, keepdim=True).clamp(min=tiny)
    return relative_BNQ * (iou_BNQ * best_BNQ).amax(-1, keepdim=True)


def score_of_label(logits_BQK: Tensor, labels_BN: Tensor) -> Tensor:
    """(B, N, Q): each cell's score for each object's class."""
    index_BQN = labels_BN[:, None].expand(-1, logits_BQK.shape[1], -1)
    return logits_BQK.sigmoid().gather(2, index_BQN).transpose(1, 2)


def taught(
    logits_BQK: Tensor, boxes_BQ4: Tensor, truth_BN4: Tensor, labels_BN: Tensor, quality_BNQ: Tensor
) -> dict[str, Tensor]:
    """Losses of cells that learn from the objects they are assigned to: quality focal `class`, `l1` (weight 5) and
    `giou` (weight 2), each relative to the sum of all qualities.

    Args:
        logits_BQK, boxes_BQ4, truth_BN4, labels_BN: as in `one_to_many`.
        quality_BNQ: the wanted score of each assigned pair, 0 elsewhere; it weighs the boxes, too.
    """
    total = across_devices(quality_BNQ.sum())
    image, obj, cell = quality_BNQ.nonzero(as_tuple=True)
    weight = quality_BNQ[image, obj, cell]
    wanted_BQK = torch.zeros_like(logits_BQK)
    wanted_BQK[image, cell, labels_BN[image, obj]] = weight
    said, truth = boxes_BQ4[image, cell], truth_BN4[image, obj]
    return {
        "class": quality_focal(logits_BQK, wanted_BQK).sum() / total,
        "l1": 5 * ((said - truth).abs().sum(-1) * weight).sum() / total,
        "giou": 2 * ((1 - giou(said, truth)) * weight).sum() / total,
    }


def rows(x_BQE: Tensor, index_BR: Tensor) -> Tensor:
    """(B, R, E): the rows of each image that `index_BR` names."""
    return x_BQE.gather(1, index_BR[..., None].expand(-1, -1, x_BQE.shape[-1]))

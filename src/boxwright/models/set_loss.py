"""The set loss of DETR's kind: predictions are matched one to one to objects, layer by layer, then each pair is judged.

All layers of a decoder are matched in one call, on costs computed for the whole batch on its device. Boxes are centre
and size, in [0, 1] of the image without its padding, as the originals have them.
"""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from boxwright.boxes import cxcywh_to_xyxy, giou, iou, xyxy_to_cxcywh
from boxwright.models.losses import across_devices, focal_cost, quality_focal
from boxwright.models.matcher import match
from boxwright.types import Batch

LEAST = 0.01  # overlap that is asked of a score: what is far off must learn, too


class Said(NamedTuple):
    """What each of the layers says with each of its queries: scores before softmax or sigmoid, one a row of the head,
    and boxes, centre and size in [0, 1] of the image."""

    logits_LBQR: Tensor
    boxes_LBQ4: Tensor


class Truth(NamedTuple):
    """The objects of a batch: boxes as in `Said`, the row of each class, False on padding rows, and their number."""

    boxes_BN4: Tensor
    rows_BN: Tensor
    valid_BN: Tensor
    count: Tensor


def truth_of(batch: Batch, extent_B4: Tensor, row_of_class_K: Tensor) -> Truth:
    """What is true of a batch, whose boxes are in [0, 1] of the canvas.

    Args:
        batch: as the loop gives it.
        extent_B4: the part of the canvas that is image, as (width, height, width, height) in [0, 1].
        row_of_class_K: the row of the head of each class.
    """
    boxes_BN4 = xyxy_to_cxcywh(batch.boxes_BN4 / extent_B4[:, None])
    rows_BN = row_of_class_K[batch.labels_BN]
    return Truth(boxes_BN4, rows_BN, batch.valid_BN, across_devices(batch.valid_BN.sum().float()))


@torch.no_grad()
def assign(said: Said, truth: Truth, class_cost_LBQR: Tensor, l1: float = 5.0, overlap: float = 2.0) -> Tensor:
    """The query that is matched to each object: (L, B, N), -1 on padding rows.

    Where an image has more objects than there are queries, as many are matched as fit, and a warning says so once.

    Args:
        said: by all layers.
        truth: N objects an image, padded.
        class_cost_LBQR: of each row, weighted already.
        l1, overlap: weights of the distance and of the generalised IoU in the cost (DETR, section 3.1).
    """
    queries, objects = said.boxes_LBQ4.shape[2], truth.valid_BN.shape[1]
    if objects > queries and (truth.valid_BN.sum(1) > queries).any():  # the same words each time: they are shown once
        said_so = "an image has more objects than queries: as many as fit are taught"
        warnings.warn(f"{said_so}; a larger --size has more queries.", stacklevel=2)
    labels_LBQN = truth.rows_BN[None, :, None].expand(len(said.boxes_LBQ4), -1, queries, -1)
    cost_LBQN = class_cost_LBQR.gather(3, labels_LBQN)
    truth_BN4, boxes_LBQ4 = truth.boxes_BN4.float(), said.boxes_LBQ4.float()
    cost_LBQN = cost_LBQN + l1 * torch.cdist(boxes_LBQ4, truth_BN4.expand(len(boxes_LBQ4), -1, -1, -1), p=1)
    corners_LBQ14, true_B1N4 = cxcywh_to_xyxy(boxes_LBQ4)[:, :, :, None], cxcywh_to_xyxy(truth_BN4)[:, None]
    cost_LBQN -= overlap * giou(corners_LBQ14, true_B1N4)
    return match(cost_LBQN.transpose(2, 3), truth.valid_BN)


def box_losses(said: Said, truth: Truth, matched_LBN: Tensor) -> dict[str, Tensor]:
    """`l1` (weight 5) and `giou` (weight 2) of each layer, (L,): sums over all pairs by the number of objects."""
    boxes_LBN4 = pick(said.boxes_LBQ4, matched_LBN)
    real_LBN = matched_LBN >= 0
    distance_LBN = (boxes_LBN4 - truth.boxes_BN4).abs().sum(-1)
    apart_LBN = 1 - giou(cxcywh_to_xyxy(boxes_LBN4), cxcywh_to_xyxy(truth.boxes_BN4))
    return {
        "l1": 5 * torch.where(real_LBN, distance_LBN, 0).sum((1, 2)) / truth.count,
        "giou": 2 * torch.where(real_LBN, apart_LBN, 0).sum((1, 2)) / truth.count,
    }


def focal_set_loss(said: Said, truth: Truth, aware: bool) -> tuple[dict[str, Tensor], Tensor]:
    """`class`, `l1` and `giou` of each layer, (L,), weighted 2, 5 and 2; and the assignment (L, B, N).

    The class is judged by the focal loss, or, if `aware`, by one that wants the overlap of the box as the score; sums
    over all queries by the number of objects.
    """
    matched_LBN = assign(said, truth, 2 * focal_cost(said.logits_LBQR.sigmoid()))
    return {
        "class": 2 * class_loss(said, truth, matched_LBN, aware),
        **box_losses(said, truth, matched_LBN),
    }, matched_LBN


def class_loss(said: Said, truth: Truth, matched_LBN: Tensor, aware: bool) -> Tensor:
    """(L,): of given pairs."""
    queries, rows = said.logits_LBQR.shape[2:]
    row_LBQ1 = give(truth.rows_BN, matched_LBN, queries, rows)[..., None]  # one row more, for nothing
    value_LBQ1 = torch.ones_like(row_LBQ1, dtype=said.logits_LBQR.dtype)
    if aware:
        value_LBQ1 = _overlap(said, truth, matched_LBN)[..., None]
    wanted_LBQR = said.logits_LBQR.new_zeros(*row_LBQ1.shape[:3], rows + 1).scatter_(3, row_LBQ1, value_LBQ1)[
        ..., :rows
    ]
    each_LBQR = (
        quality_focal(said.logits_LBQR, wanted_LBQR) if aware else sigmoid_focal_loss(said.logits_LBQR, wanted_LBQR)
    )
    return each_LBQR.sum((1, 2, 3)) / truth.count


@torch.no_grad()
def _overlap(said: Said, truth: Truth, matched_LBN: Tensor) -> Tensor:
    """(L, B, Q): overlap of each query's box with its object."""
    corners_LBN4 = cxcywh_to_xyxy(pick(said.boxes_LBQ4, matched_LBN))
    overlap_LBN = iou(corners_LBN4, cxcywh_to_xyxy(truth.boxes_BN4)).clamp(min=LEAST)
    return give(overlap_LBN, matched_LBN, said.boxes_LBQ4.shape[2], 0.0)


def pick(x_LBQE: Tensor, matched_LBN: Tensor) -> Tensor:
    """(L, B, N, E): of each object, what its query says; anything on padding rows."""
    return x_LBQE.gather(2, matched_LBN.clamp(min=0)[..., None].expand(-1, -1, -1, x_LBQE.shape[-1]))


def give(values_LBN: Tensor, matched_LBN: Tensor, queries: int, otherwise: float) -> Tensor:
    """(L, B, Q): to each matched query the value of its object, the same for all layers if (B, N); else `otherwise`."""
    given_LBQ = values_LBN.new_full((*matched_LBN.shape[:2], queries + 1), otherwise)
    place_LBN = torch.where(matched_LBN >= 0, matched_LBN, queries)  # padding goes to a query that is cut off
    return given_LBQ.scatter(2, place_LBN, values_LBN.expand_as(matched_LBN))[..., :queries]


def by_layer(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """Losses (L,) as one named scalar a layer, counted from 1: `l1_1`, `l1_2`..."""
    return {f"{name}_{n + 1}": value for name, values in terms.items() for n, value in enumerate(values.unbind())}

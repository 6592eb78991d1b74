"""The set loss of DETR's kind: predictions are matched one to one to objects, layer by layer, then each pair is judged.

All layers of a decoder are matched in one call, on costs computed for the whole batch on its device. Boxes are centre
and size, in [0, 1] of the image without its padding, as the originals have them.
"""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from boxwright.boxes import cxcywh_to_xyxy, distance, giou, iou, xyxy_to_cxcywh
from boxwright.models.losses.focal import across_devices, focal_cost, quality_focal
from boxwright.models.losses.hungarian import match_packed
from boxwright.types import Batch

LEAST = 0.01  # overlap that is asked of a score: what is far off must learn, too

AT_ONCE = 2**23  # costs: more are computed in parts, so that crowds don't take all memory


class LayerPredictions(NamedTuple):
    """What each of the layers says with each of its queries: scores before softmax or sigmoid, one a row of the head,
    and boxes, centre and size in [0, 1] of the image."""

    logits_LBQR: Tensor
    boxes_LBQ4: Tensor


class Targets(NamedTuple):
    """The objects of a batch: boxes as in `LayerPredictions`, the row of each class, False on padding rows, and their number."""

    boxes_BN4: Tensor
    rows_BN: Tensor
    valid_BN: Tensor
    count: Tensor


def truth_of(batch: Batch, extent_B4: Tensor, row_of_class_K: Tensor) -> Targets:
    """What is true of a batch, whose boxes are in [0, 1] of the canvas; at least one row an image, be it padding.

    Args:
        batch: as the loop gives it.
        extent_B4: the part of the canvas that is image, as (width, height, width, height) in [0, 1].
        row_of_class_K: the row of the head of each class.
    """
    lacking = int(batch.valid_BN.shape[1] == 0)
    boxes_BN4 = F.pad(xyxy_to_cxcywh(batch.boxes_BN4 / extent_B4[:, None]), (0, 0, 0, lacking))
    rows_BN = F.pad(row_of_class_K[batch.labels_BN], (0, lacking))
    valid_BN = F.pad(batch.valid_BN, (0, lacking))
    return Targets(boxes_BN4, rows_BN, valid_BN, across_devices(valid_BN.sum().float()))


@torch.no_grad()
def assign(
    said: LayerPredictions,
    truth: Targets,
    scores_LBQR: Tensor,
    price: Callable[[Tensor], Tensor],
    l1: float = 5.0,
    overlap: float = 2.0,
) -> Tensor:
    """The query that is matched to each object: (L, B, N), -1 on padding rows.

    Where an image has more objects than there are queries, as many are matched as fit, and a warning says so once.
    Only real objects meet the queries, and only those of their own image.

    Args:
        said: by all layers.
        truth: N objects an image, padded.
        scores_LBQR: what `price` makes a cost of, for the row of the object's class alone.
        price: from scores of any shape to costs, weighted already.
        l1, overlap: weights of the distance and of the generalised IoU in the cost (DETR, section 3.1).
    """
    counts = truth.valid_BN.sum(1).tolist()
    if max(counts) > said.boxes_LBQ4.shape[2]:  # the same words each time: they are shown once
        said_so = "an image has more objects than queries: as many as fit are taught"
        warnings.warn(f"{said_so}; a larger --size has more queries.", stacklevel=2)
    image_M, object_M = truth.valid_BN.nonzero(as_tuple=True)
    row_M, true_M14 = truth.rows_BN[image_M, object_M], truth.boxes_BN4[image_M, object_M][:, None].float()
    boxes_LBQ4, corners_LBQ4 = (_by_number(x.float()) for x in (said.boxes_LBQ4, cxcywh_to_xyxy(said.boxes_LBQ4)))
    scores_LBRQ = scores_LBQR.transpose(2, 3)

    def costs(some_M: Tensor) -> Tensor:
        its_M, it_M14 = image_M[some_M], true_M14[some_M]
        distance_LMQ = distance(boxes_LBQ4[:, its_M], it_M14)
        overlap_LMQ = giou(corners_LBQ4[:, its_M], cxcywh_to_xyxy(it_M14))
        return price(scores_LBRQ[:, its_M, row_M[some_M]].float()) + l1 * distance_LMQ - overlap * overlap_LMQ

    parts = torch.arange(len(image_M), device=image_M.device).split(max(1, AT_ONCE // scores_LBQR[:, 0, :, 0].numel()))
    matched_LBN = object_M.new_full((len(scores_LBQR), *truth.valid_BN.shape), -1)
    matched_LBN[:, image_M, object_M] = match_packed(torch.cat([costs(part_M) for part_M in parts], 1), counts)
    return matched_LBN


def _by_number(boxes_LBQ4: Tensor) -> Tensor:
    """The same, but in memory the four numbers lie apart, with which arithmetic is several times faster."""
    return boxes_LBQ4.movedim(-1, 0).contiguous().movedim(0, -1)


def box_losses(said: LayerPredictions, truth: Targets, matched_LBN: Tensor) -> dict[str, Tensor]:
    """`l1` (weight 5) and `giou` (weight 2) of each layer, (L,): sums over all pairs by the number of objects."""
    boxes_LBN4 = pick(said.boxes_LBQ4, matched_LBN)
    real_LBN = matched_LBN >= 0
    distance_LBN = distance(boxes_LBN4, truth.boxes_BN4)
    apart_LBN = 1 - giou(cxcywh_to_xyxy(boxes_LBN4), cxcywh_to_xyxy(truth.boxes_BN4))
    return {
        "l1": 5 * torch.where(real_LBN, distance_LBN, 0).sum((1, 2)) / truth.count,
        "giou": 2 * torch.where(real_LBN, apart_LBN, 0).sum((1, 2)) / truth.count,
    }


def focal_set_loss(said: LayerPredictions, truth: Targets, aware: bool) -> tuple[dict[str, Tensor], Tensor]:
    """`class`, `l1` and `giou` of each layer, (L,), weighted 2, 5 and 2; and the assignment (L, B, N).

    The class is judged by the focal loss, or, if `aware`, by one that wants the overlap of the box as the score; sums
    over all queries by the number of objects.
    """
    matched_LBN = assign(said, truth, said.logits_LBQR, lambda logits: 2 * focal_cost(logits.sigmoid()))
    return {
        "class": 2 * class_loss(said, truth, matched_LBN, aware),
        **box_losses(said, truth, matched_LBN),
    }, matched_LBN


def class_loss(said: LayerPredictions, truth: Targets, matched_LBN: Tensor, aware: bool) -> Tensor:
    """(L,): of given pairs."""
    queries, rows = said.logits_LBQR.shape[2:]
    row_LBQ1 = give(truth.rows_BN, matched_LBN, queries, rows)[..., None]  # one row more, for nothing
    value_LBQ1 = torch.ones_like(row_LBQ1, dtype=said.logits_LBQR.dtype)
    if aware:
        value_LBQ1 = _overlap(said, truth, matched_LBN)[..., None]
    nothing_LBQR = said.logits_LBQR.new_zeros(*row_LBQ1.shape[:3], rows + 1)
    wanted_LBQR = nothing_LBQR.scatter(3, row_LBQ1, value_LBQ1)[..., :rows]
    judge = quality_focal if aware else sigmoid_focal_loss
    each_LBQR = judge(said.logits_LBQR, wanted_LBQR)
    return each_LBQR.sum((1, 2, 3)) / truth.count


@torch.no_grad()
def _overlap(said: LayerPredictions, truth: Targets, matched_LBN: Tensor) -> Tensor:
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

"""The set criterion of the DETR family: predictions are matched one to one with objects, then each pair has a loss.

All layers of a decoder are matched in one call, on costs computed for the whole batch on its device. Boxes are centre
and size, in [0, 1] of the image without its padding, as in the published code.
"""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from boxwright.boxes import cxcywh_to_xyxy, distance, giou, iou, xyxy_to_cxcywh
from boxwright.models.losses.focal import focal_cost, quality_focal
from boxwright.models.losses.hungarian import match_packed
from boxwright.models.losses.normaliser import normaliser
from boxwright.types import Batch

MIN_OVERLAP = 0.01  # least target of a matched query's score, so that boxes far off learn, too
MAX_COSTS = 2**23  # more are computed in parts, so that crowded images don't take all memory


class LayerPredictions(NamedTuple):
    """Predictions of each decoder layer.

    Attributes:
        logits_LBQR: scores before softmax or sigmoid, one for each row of the head.
        boxes_LBQ4: centre and size, in [0, 1] of the image.
    """

    logits_LBQR: Tensor
    boxes_LBQ4: Tensor


class Targets(NamedTuple):
    """The objects of a batch.

    Attributes:
        boxes_BN4: centre and size, in [0, 1] of the image.
        rows_BN: the head's row for the class of each object.
        valid_BN: False on padding rows.
        count: number of objects, averaged over devices; at least 1.
    """

    boxes_BN4: Tensor
    rows_BN: Tensor
    valid_BN: Tensor
    count: Tensor


def targets_of(batch: Batch, valid_ratios_B4: Tensor, row_of_class_K: Tensor) -> Targets:
    """The objects of a batch, whose boxes are in [0, 1] of the canvas; at least one row per image, if only of padding.

    Args:
        batch: images and their objects.
        valid_ratios_B4: the valid area of the canvas, (width, height, width, height) in [0, 1].
        row_of_class_K: the head's row of each class.
    """
    lacking = int(batch.valid_BN.shape[1] == 0)
    boxes_BN4 = F.pad(xyxy_to_cxcywh(batch.boxes_BN4 / valid_ratios_B4[:, None]), (0, 0, 0, lacking))
    rows_BN = F.pad(row_of_class_K[batch.labels_BN], (0, lacking))
    valid_BN = F.pad(batch.valid_BN, (0, lacking))
    return Targets(boxes_BN4, rows_BN, valid_BN, normaliser(valid_BN.sum().float()))


@torch.no_grad()
def assign(
    layers: LayerPredictions,
    targets: Targets,
    scores_LBQR: Tensor,
    class_cost: Callable[[Tensor], Tensor],
    l1: float = 5.0,
    overlap: float = 2.0,
) -> Tensor:
    """The query that is matched to each object: (L, B, N), -1 on padding rows.

    Where an image has more objects than there are queries, as many are matched as fit, and a warning says so once.

    Args:
        layers: predictions of all layers.
        targets: N objects per image, padded.
        scores_LBQR: scores from which `class_cost` is computed, for the row of the object's class.
        class_cost: from scores of any shape to weighted costs.
        l1, overlap: weights of the L1 distance and of the generalised IoU in the cost (DETR, section 3.1).
    """
    counts = targets.valid_BN.sum(1).tolist()
    if max(counts) > layers.boxes_LBQ4.shape[2]:  # the same text each time, so that it is shown once
        problem = "an image has more objects than queries: only as many as fit are learned"
        warnings.warn(f"{problem}; a larger --size or --image-size has more queries.", stacklevel=2)
    image_M, object_M = targets.valid_BN.nonzero(as_tuple=True)
    row_M, true_M14 = targets.rows_BN[image_M, object_M], targets.boxes_BN4[image_M, object_M][:, None].float()
    boxes_LBQ4, corners_LBQ4 = (
        _coordinates_apart(x.float()) for x in (layers.boxes_LBQ4, cxcywh_to_xyxy(layers.boxes_LBQ4))
    )
    scores_LBRQ = scores_LBQR.transpose(2, 3)

    def costs(some_M: Tensor) -> Tensor:
        image_C, true_C14 = image_M[some_M], true_M14[some_M]
        distance_LMQ = distance(boxes_LBQ4[:, image_C], true_C14)
        overlap_LMQ = giou(corners_LBQ4[:, image_C], cxcywh_to_xyxy(true_C14))
        return class_cost(scores_LBRQ[:, image_C, row_M[some_M]].float()) + l1 * distance_LMQ - overlap * overlap_LMQ

    parts = torch.arange(len(image_M), device=image_M.device).split(
        max(1, MAX_COSTS // scores_LBQR[:, 0, :, 0].numel())
    )
    matched_LBN = object_M.new_full((len(scores_LBQR), *targets.valid_BN.shape), -1)
    matched_LBN[:, image_M, object_M] = match_packed(torch.cat([costs(part_M) for part_M in parts], 1), counts)
    return matched_LBN


def _coordinates_apart(boxes_LBQ4: Tensor) -> Tensor:
    """The same boxes, stored coordinate by coordinate, with which arithmetic is several times faster."""
    return boxes_LBQ4.movedim(-1, 0).contiguous().movedim(0, -1)


def box_losses(layers: LayerPredictions, targets: Targets, matched_LBN: Tensor) -> dict[str, Tensor]:
    """`l1` (weight 5) and `giou` (weight 2) of each layer, (L,): sums over pairs, divided by the number of objects."""
    boxes_LBN4 = gather_queries(layers.boxes_LBQ4, matched_LBN)
    real_LBN = matched_LBN >= 0
    distance_LBN = distance(boxes_LBN4, targets.boxes_BN4)
    giou_loss_LBN = 1 - giou(cxcywh_to_xyxy(boxes_LBN4), cxcywh_to_xyxy(targets.boxes_BN4))
    return {
        "l1": 5 * torch.where(real_LBN, distance_LBN, 0).sum((1, 2)) / targets.count,
        "giou": 2 * torch.where(real_LBN, giou_loss_LBN, 0).sum((1, 2)) / targets.count,
    }


def focal_set_loss(layers: LayerPredictions, targets: Targets, aware: bool) -> tuple[dict[str, Tensor], Tensor]:
    """`class`, `l1` and `giou` of each layer, (L,), weighted 2, 5 and 2; and the assignment (L, B, N).

    The class loss is the focal loss or, if `aware`, the quality focal loss with the IoU of the box as target: a sum
    over all queries, divided by the number of objects.
    """
    matched_LBN = assign(layers, targets, layers.logits_LBQR, lambda logits: 2 * focal_cost(logits.sigmoid()))
    return {
        "class": 2 * class_loss(layers, targets, matched_LBN, aware),
        **box_losses(layers, targets, matched_LBN),
    }, matched_LBN


def class_loss(layers: LayerPredictions, targets: Targets, matched_LBN: Tensor, aware: bool) -> Tensor:
    """Focal or quality focal loss of each layer for a given assignment, (L,)."""
    queries, rows = layers.logits_LBQR.shape[2:]
    row_LBQ1 = scatter_to_queries(targets.rows_BN, matched_LBN, queries, rows)[..., None]  # one more row, for no object
    value_LBQ1 = torch.ones_like(row_LBQ1, dtype=layers.logits_LBQR.dtype)
    if aware:
        value_LBQ1 = _overlap(layers, targets, matched_LBN)[..., None]
    zeros_LBQR = layers.logits_LBQR.new_zeros(*row_LBQ1.shape[:3], rows + 1)
    wanted_LBQR = zeros_LBQR.scatter(3, row_LBQ1, value_LBQ1)[..., :rows]
    criterion = quality_focal if aware else sigmoid_focal_loss
    each_LBQR = criterion(layers.logits_LBQR, wanted_LBQR)
    return each_LBQR.sum((1, 2, 3)) / targets.count


@torch.no_grad()
def _overlap(layers: LayerPredictions, targets: Targets, matched_LBN: Tensor) -> Tensor:
    """IoU of each query's box with its object, (L, B, Q), else 0."""
    corners_LBN4 = cxcywh_to_xyxy(gather_queries(layers.boxes_LBQ4, matched_LBN))
    overlap_LBN = iou(corners_LBN4, cxcywh_to_xyxy(targets.boxes_BN4)).clamp(min=MIN_OVERLAP)
    return scatter_to_queries(overlap_LBN, matched_LBN, layers.boxes_LBQ4.shape[2], 0.0)


def gather_queries(x_LBQE: Tensor, matched_LBN: Tensor) -> Tensor:
    """The values of each object's query, (L, B, N, E); arbitrary on padding rows."""
    return x_LBQE.gather(2, matched_LBN.clamp(min=0)[..., None].expand(-1, -1, -1, x_LBQE.shape[-1]))


def scatter_to_queries(values_LBN: Tensor, matched_LBN: Tensor, queries: int, otherwise: float) -> Tensor:
    """The value of each matched query's object, (L, B, Q), else `otherwise`; values may be (B, N) for all layers."""
    values_LBQ = values_LBN.new_full((*matched_LBN.shape[:2], queries + 1), otherwise)
    query_LBN = torch.where(matched_LBN >= 0, matched_LBN, queries)  # padding goes to one more query, which is cut off
    return values_LBQ.scatter(2, query_LBN, values_LBN.expand_as(matched_LBN))[..., :queries]


def by_layer(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """Losses (L,) as one named scalar per layer, counted from 1: `l1_1`, `l1_2`..."""
    return {f"{name}_{n + 1}": value for name, values in terms.items() for n, value in enumerate(values.unbind())}

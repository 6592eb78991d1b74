"""Losses of proposals and of the queries that start from them, shared by the detectors that have such queries."""

import torch
from torch import Tensor

from boxwright.boxes import cxcywh_to_xyxy
from boxwright.models.layers.deformable_transformer import MultiScaleCells
from boxwright.models.layers.proposals import QueryProposals
from boxwright.models.losses.denoising import DenoisingQueries, denoising_loss
from boxwright.models.losses.set_criterion import LayerPredictions, Targets, by_layer, focal_set_loss
from boxwright.models.losses.task_aligned import assigned_losses, candidates, one_to_many
from boxwright.types import Predictions


def one_to_many_loss(cells: MultiScaleCells, proposals: QueryProposals, targets: Targets) -> dict[str, Tensor]:
    """`class_0`, `l1_0` and `giou_0` of proposals, where several cells are assigned to each object."""
    corners_BT4, true_BN4 = cxcywh_to_xyxy(proposals.boxes_BT4.sigmoid()), cxcywh_to_xyxy(targets.boxes_BN4)
    pairs_BNT = candidates(cells.centres_BT2, cells.reach_BT2, true_BN4, targets.valid_BN)
    pairs_BNT &= proposals.usable_BT[:, None]
    quality_BNT = one_to_many(proposals.logits_BTR, corners_BT4, true_BN4, targets.rows_BN, pairs_BNT)
    terms = assigned_losses(proposals.logits_BTR, corners_BT4, true_BN4, targets.rows_BN, quality_BNT)
    return {f"{name}_0": value for name, value in terms.items()}


def one_to_one_loss(proposals: QueryProposals, targets: Targets, aware: bool) -> dict[str, Tensor]:
    """The same terms, where one cell is matched with each object; `aware` as in `focal_set_loss`."""
    layer = LayerPredictions(proposals.logits_BTR[None], proposals.boxes_BT4.sigmoid()[None])
    terms, _ = focal_set_loss(layer, targets, aware)
    return {f"{name}_0": value[0] for name, value in terms.items()}


def query_losses(
    layers: LayerPredictions,
    denoising: tuple[DenoisingQueries, LayerPredictions] | None,
    targets: Targets,
    aware: bool,
) -> dict[str, Tensor]:
    """`class`, `l1` and `giou` of each layer, counted from 1; before them those of the denoising queries."""
    losses: dict[str, Tensor] = {}
    if denoising is not None:
        terms = denoising_loss(denoising[1], denoising[0], targets, aware)
        losses |= by_layer({f"noisy_{name}": values for name, values in terms.items()})
    terms, _ = focal_set_loss(layers, targets, aware)
    return losses | by_layer(terms)


@torch.no_grad()
def decode_queries(layers: LayerPredictions, rows_K: Tensor, valid_ratios_B4: Tensor) -> Predictions:
    """The queries and classes with the highest scores after the last layer, as many as there are queries.

    Args:
        layers: their scores are independent of each other (sigmoid).
        rows_K: the head's row of each class.
        valid_ratios_B4: the valid area of the canvas, (width, height, width, height) in [0, 1].
    """
    scores_BQK = layers.logits_LBQR[-1].sigmoid()[..., rows_K]
    classes = scores_BQK.shape[-1]
    scores_BD, index_BD = scores_BQK.flatten(1).topk(scores_BQK.shape[1])
    boxes_BQ4 = cxcywh_to_xyxy(layers.boxes_LBQ4[-1]).clamp(0, 1) * valid_ratios_B4[:, None]
    boxes_BD4 = boxes_BQ4.gather(1, (index_BD // classes)[..., None].expand(-1, -1, 4))
    return Predictions(boxes_BD4, scores_BD, index_BD % classes)

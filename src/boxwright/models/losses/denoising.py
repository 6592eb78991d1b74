"""Contrastive denoising: noised ground-truth boxes as further queries in training.

A query with little noise must predict its object, one with more noise must predict none. They need no matching, so that
the decoder learns from the first step what a box is (DINO, Zhang et al. 2023, section 3.3). Groups of them don't attend
to each other, and the matched queries don't attend to them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from boxwright.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from boxwright.models.layers.deformable_transformer import Queries
from boxwright.models.losses.set_criterion import LayerPredictions, Targets, box_losses, class_loss

DENOISING_QUERIES = 100  # per image: as many groups as fit
SHIFT = 0.4  # largest shift of a positive query's corner, in half sizes; negative ones are shifted 1 to 2 times that
LOW = -4.6  # initial logit of the classes that a query does not start with
RELABELLED = 0.25  # share of the queries that start with a random class


@dataclass(frozen=True)
class DenoisingQueries:
    """Noised boxes as queries: G groups, each of N positive ones, one for each object, then N negative ones.

    Attributes:
        contents_BDE: embeddings of their classes; D = 2 * G * N.
        rows_BD: the head's rows of their classes.
        boxes_BD4: centre and size, in [0, 1] of the image.
        real_BD: False where the object is padding.
        groups: G.
    """

    contents_BDE: Tensor
    rows_BD: Tensor
    boxes_BD4: Tensor
    real_BD: Tensor
    groups: int

    @property
    def count(self) -> int:
        """D, the number of these queries."""
        return self.real_BD.shape[1]

    def prepended_to(self, queries: Queries) -> Queries:
        """These queries followed by the matched ones, and which may attend to which."""
        logits_BQR = queries.logits_BQR
        return Queries(
            torch.cat([self.contents_BDE, queries.contents_BQE], 1),
            torch.cat([self.boxes_BD4, queries.boxes_BQX], 1),
            None,
            self._allowed(queries.contents_BQE.shape[1]),
            None if logits_BQR is None else torch.cat([self._logits(logits_BQR), logits_BQR], 1),
        )

    def _logits(self, like_BQR: Tensor) -> Tensor:
        """Initial logits: 0 for their class, low for all others."""
        low_BDR = like_BQR.new_full((*self.rows_BD.shape, like_BQR.shape[-1]), LOW)
        return low_BDR.scatter(2, self.rows_BD[..., None], 0.0)

    def _allowed(self, matched: int) -> Tensor:
        """Attention mask (B, D + Q, D + Q): a group attends to itself and the matched queries, these to themselves."""
        images, noised = self.real_BD.shape
        group_Q = torch.arange(noised + matched, device=self.real_BD.device) // (noised // self.groups)
        group_Q = group_Q.clamp(max=self.groups)  # the last group: the matched queries
        within_QQ = (group_Q[:, None] == group_Q) | (group_Q == self.groups)
        valid_BQ = torch.cat([self.real_BD, self.real_BD.new_ones(images, matched)], 1)
        itself_QQ = torch.eye(noised + matched, dtype=torch.bool, device=self.real_BD.device)
        return (within_QQ & valid_BQ[:, None]) | itself_QQ

    def split(self, layers: LayerPredictions) -> tuple[LayerPredictions, LayerPredictions]:
        """Predictions for these queries, and for the matched ones."""
        logits, boxes = (x.split([self.count, x.shape[2] - self.count], 2) for x in layers)
        return LayerPredictions(logits[0], boxes[0]), LayerPredictions(logits[1], boxes[1])


def make_denoising_queries(targets: Targets, label_embedding: Tensor) -> DenoisingQueries:
    """Groups of noised boxes, as many as fit into `DENOISING_QUERIES`, at least one.

    Args:
        targets: at least one row per image, if only of padding.
        label_embedding: an embedding of each row of the head, (R, E).
    """
    objects = targets.valid_BN.shape[1]
    groups = max(1, DENOISING_QUERIES // (2 * objects))
    boxes_BD4, rows_BD, real_BD = (
        x.repeat(1, 2 * groups, *[1] * (x.ndim - 2)) for x in (targets.boxes_BN4, targets.rows_BN, targets.valid_BN)
    )
    negative_D = torch.arange(2 * objects, device=rows_BD.device).repeat(groups) >= objects
    shift_BD4 = torch.rand_like(boxes_BD4) + negative_D[:, None]
    shift_BD4 = shift_BD4 * (torch.randint_like(boxes_BD4, 2) * 2 - 1) * SHIFT
    corners_BD4 = cxcywh_to_xyxy(boxes_BD4) + shift_BD4 * boxes_BD4[..., 2:].repeat(1, 1, 2) / 2
    low_BD2, high_BD2 = corners_BD4.clamp(0, 1).split(2, -1)  # crossed corners are swapped
    noised_BD4 = xyxy_to_cxcywh(torch.cat([low_BD2.minimum(high_BD2), low_BD2.maximum(high_BD2)], -1))
    other_BD = torch.randint_like(rows_BD, len(label_embedding))
    rows_BD = torch.where(torch.rand_like(noised_BD4[..., 0]) < RELABELLED, other_BD, rows_BD)
    contents_BDE = label_embedding[rows_BD] * real_BD[..., None]
    return DenoisingQueries(contents_BDE, rows_BD, noised_BD4, real_BD, groups)


def denoising_loss(
    layers: LayerPredictions, queries: DenoisingQueries, targets: Targets, aware: bool
) -> dict[str, Tensor]:
    """`class`, `l1` and `giou` of each layer, (L,): in each group, the first half has its object, the others none."""
    count, images = layers.logits_LBQR.shape[:2]
    objects, groups = targets.valid_BN.shape[1], queries.groups
    first_G = torch.arange(groups, device=targets.valid_BN.device) * 2 * objects
    query_M = (first_G[:, None] + torch.arange(objects, device=first_G.device)).flatten()
    repeated = Targets(
        targets.boxes_BN4.repeat(1, groups, 1), targets.rows_BN.repeat(1, groups), targets.valid_BN.repeat(1, groups),
        targets.count * groups,
    )  # fmt: skip
    matched_LBM = torch.where(repeated.valid_BN, query_M, -1).expand(count, images, -1)
    logits_LBQR = layers.logits_LBQR.masked_fill(~queries.real_BD[..., None], -30.0)  # padding: no loss, no gradient
    layers = LayerPredictions(logits_LBQR, layers.boxes_LBQ4)
    classes_L = 2 * class_loss(layers, repeated, matched_LBM, aware)
    return {"class": classes_L, **box_losses(layers, repeated, matched_LBM)}

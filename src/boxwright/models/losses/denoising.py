"""True boxes, shaken, as further queries in training: what is near an object must find it, what is farther must not.

They need no matching, so that the decoder learns from the first step what a box is (contrastive denoising; DINO, Zhang
et al. 2023, section 3.3). Groups of them don't see each other, and the queries that are matched don't see them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from boxwright.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from boxwright.models.layers.deformable_transformer import Queries
from boxwright.models.losses.set_criterion import LayerPredictions, Targets, box_losses, class_loss

SHAKEN = 100  # queries aimed at: as many groups as they give room for
SHIFT = 0.4  # most that a corner moves, in half sizes, if it shall find its object; if not, once to twice that
LOW = -4.6  # the score, before the sigmoid, of a class that a query does not begin with
RELABELLED = 0.25  # share of the queries that begin with a random class


@dataclass(frozen=True)
class DenoisingQueries:
    """Shaken boxes as queries: G groups, each of all N objects that shall be found, then all N that shall not.

    Attributes:
        contents_BDE: the codes of their classes; D = 2 * G * N.
        rows_BD: the rows of their classes.
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

    def in_front_of(self, queries: Queries) -> Queries:
        """Both kinds side by side, these first, and who may look at whom."""
        logits_BQR = queries.logits_BQR
        return Queries(
            torch.cat([self.contents_BDE, queries.contents_BQE], 1),
            torch.cat([self.boxes_BD4, queries.boxes_BQX], 1),
            None,
            self._apart(queries.contents_BQE.shape[1]),
            None if logits_BQR is None else torch.cat([self._logits(logits_BQR), logits_BQR], 1),
        )

    def _logits(self, like_BQR: Tensor) -> Tensor:
        """The scores that they begin with: even for their class, low for all others."""
        low_BDR = like_BQR.new_full((*self.rows_BD.shape, like_BQR.shape[-1]), LOW)
        return low_BDR.scatter(2, self.rows_BD[..., None], 0.0)

    def _apart(self, matched: int) -> Tensor:
        """(B, D + Q, D + Q) bool: a group sees itself without padding, and what is matched; that sees only itself."""
        images, shaken = self.real_BD.shape
        group_Q = torch.arange(shaken + matched, device=self.real_BD.device) // (shaken // self.groups)
        group_Q = group_Q.clamp(max=self.groups)  # the last one: those that are matched
        within_QQ = (group_Q[:, None] == group_Q) | (group_Q == self.groups)
        seen_BQ = torch.cat([self.real_BD, self.real_BD.new_ones(images, matched)], 1)
        itself_QQ = torch.eye(shaken + matched, dtype=torch.bool, device=self.real_BD.device)
        return (within_QQ & seen_BQ[:, None]) | itself_QQ

    def split(self, said: LayerPredictions) -> tuple[LayerPredictions, LayerPredictions]:
        """What these say, and what the others say."""
        (one, other), (here, there) = (x.split([self.count, x.shape[2] - self.count], 2) for x in said)
        return LayerPredictions(one, here), LayerPredictions(other, there)


def shake(truth: Targets, label_embedding: Tensor) -> DenoisingQueries:
    """As many groups as `SHAKEN` has room for, at least one.

    Args:
        truth: at least one object an image, padding included.
        label_embedding: a code of each row, (R, E).
    """
    objects = truth.valid_BN.shape[1]
    groups = max(1, SHAKEN // (2 * objects))
    boxes_BD4, rows_BD, real_BD = (
        x.repeat(1, 2 * groups, *[1] * (x.ndim - 2)) for x in (truth.boxes_BN4, truth.rows_BN, truth.valid_BN)
    )
    wrong_D = torch.arange(2 * objects, device=rows_BD.device).repeat(groups) >= objects
    by_BD4 = torch.rand_like(boxes_BD4) + wrong_D[:, None]
    by_BD4 = by_BD4 * (torch.randint_like(boxes_BD4, 2) * 2 - 1) * SHIFT
    corners_BD4 = cxcywh_to_xyxy(boxes_BD4) + by_BD4 * boxes_BD4[..., 2:].repeat(1, 1, 2) / 2
    low_BD2, high_BD2 = corners_BD4.clamp(0, 1).split(2, -1)  # corners that passed each other are swapped
    shaken_BD4 = xyxy_to_cxcywh(torch.cat([low_BD2.minimum(high_BD2), low_BD2.maximum(high_BD2)], -1))
    other_BD = torch.randint_like(rows_BD, len(label_embedding))
    rows_BD = torch.where(torch.rand_like(shaken_BD4[..., 0]) < RELABELLED, other_BD, rows_BD)
    contents_BDE = label_embedding[rows_BD] * real_BD[..., None]
    return DenoisingQueries(contents_BDE, rows_BD, shaken_BD4, real_BD, groups)


def denoising_loss(said: LayerPredictions, shaken: DenoisingQueries, truth: Targets, aware: bool) -> dict[str, Tensor]:
    """`class`, `l1` and `giou` of each layer, (L,): of each group, the first half has its object, the others none."""
    layers, images = said.logits_LBQR.shape[:2]
    objects, groups = truth.valid_BN.shape[1], shaken.groups
    first_G = torch.arange(groups, device=truth.valid_BN.device) * 2 * objects
    query_M = (first_G[:, None] + torch.arange(objects, device=first_G.device)).flatten()
    again = Targets(
        truth.boxes_BN4.repeat(1, groups, 1), truth.rows_BN.repeat(1, groups), truth.valid_BN.repeat(1, groups),
        truth.count * groups,
    )  # fmt: skip
    matched_LBM = torch.where(again.valid_BN, query_M, -1).expand(layers, images, -1)
    silent = said.logits_LBQR.masked_fill(~shaken.real_BD[..., None], -30.0)  # padding: no loss, no gradient
    said = LayerPredictions(silent, said.boxes_LBQ4)
    classes_L = 2 * class_loss(said, again, matched_LBM, aware)
    return {"class": classes_L, **box_losses(said, again, matched_LBM)}

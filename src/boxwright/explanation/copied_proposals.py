"""Which proposals a sequence was copied from: the weight of each at every token, and the attention to them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from boxwright.models.sequence.mixture import Sides
from boxwright.models.sequence.proposal_decoder import CLASS_SLOT, SLOTS, ProposalDecoder, overlaps
from boxwright.models.sequence.proposals import Proposals
from boxwright.models.sequence.side_distributions import side_tables

CELLS = 32  # along a side of the map on which attention to proposals is drawn
SPREAD = 1 / CELLS  # standard deviation of a proposal's spot on it, in [0, 1] of the canvas


@dataclass
class CopyTrace:
    """The C proposals of one image, and N objects that were copied from them.

    Attributes:
        boxes_C4: of the proposals, xyxy in [0, 1] of the canvas.
        scores_C, labels_C: the score of each one's best class, in [0, 1], and that class.
        own_boxes_N4: the decoder's own box at each object.
        weights_N5X: of the C proposals, then of the own box, from which each token was mixed: before the object's first
            token, then given the tokens before it; sums to 1.
    """

    boxes_C4: np.ndarray
    scores_C: np.ndarray
    labels_C: np.ndarray
    own_boxes_N4: np.ndarray
    weights_N5X: np.ndarray

    @property
    def own(self) -> int:
        """The position of the own box among the weights."""
        return len(self.boxes_C4)

    def source(self, n: int) -> int:
        """What explains the box of an object best: the position of a proposal, or `own`."""
        return self.heaviest(n, CLASS_SLOT, 1)[0]

    def name(self, source: int) -> str:
        """What a source is called on pages; proposals are counted from 1."""
        return "own box" if source == self.own else f"proposal {source + 1}"

    def gates(self, slot: int = CLASS_SLOT) -> np.ndarray:
        """The weight of the own box at a token of each object, by default given the whole box, (N,)."""
        return self.weights_N5X[:, slot, self.own]

    def heaviest(self, n: int, slot: int, most: int) -> list[int]:
        """The positions of up to `most` sources of a token, the heaviest first."""
        return np.argsort(-self.weights_N5X[n, slot], kind="stable")[:most].tolist()

    def boxes(self, n: int) -> np.ndarray:
        """The boxes that an object was mixed from, (C + 1, 4): the proposals, then the own box."""
        return np.concatenate([self.boxes_C4, self.own_boxes_N4[n : n + 1]])

    def first(self, objects: int) -> CopyTrace:
        """The trace of the first objects alone."""
        own_boxes_N4, weights_N5X = self.own_boxes_N4[:objects], self.weights_N5X[:objects]
        return CopyTrace(self.boxes_C4, self.scores_C, self.labels_C, own_boxes_N4, weights_N5X)


@torch.no_grad()
def trace_copies(
    decoder: ProposalDecoder, tokens_BL: Tensor, states_BNE: Tensor, proposals: Proposals
) -> list[CopyTrace]:
    """The traces of sequences, one of each image.

    Args:
        decoder: in evaluation mode.
        tokens_BL: N whole objects each.
        states_BNE: of the decoder before each object.
        proposals: of the images.
    """
    vocabulary, tokens_BNS = proposals.vocabulary, tokens_BL.unflatten(1, (-1, SLOTS))
    boxes_BN4 = vocabulary.boxes(tokens_BNS[..., :CLASS_SLOT])
    own_boxes_BN4, spreads_BN4 = decoder.own_boxes(states_BNE)
    edges = vocabulary.edges(tokens_BL.device)
    own = side_tables(own_boxes_BN4.reshape(-1, 1, 4), spreads_BN4.reshape(-1, 1, 4), edges)
    sides = Sides(side_tables(proposals.boxes_BC4, proposals.spreads_BC4, edges), own, vocabulary)
    overlap_BNC = overlaps(boxes_BN4, proposals.boxes_BC4)[:, :-1]
    weights = [decoder.log_weights(states_BNE, overlap_BNC, proposals)]
    for slot in range(CLASS_SLOT):
        weights.append(weights[-1] + sides.evidence(slot, tokens_BNS))
    weights_BN5X = torch.stack(weights, 2).softmax(-1)
    scores_BC, labels_BC = proposals.logits_BCK.sigmoid().max(-1)
    parts = (proposals.boxes_BC4, scores_BC, labels_BC, own_boxes_BN4, weights_BN5X)
    return [CopyTrace(*image) for image in zip(*(part.cpu().numpy() for part in parts), strict=True)]


def proposal_maps(attention_BNC: Tensor, boxes_BC4: Tensor) -> Tensor:
    """Attention to proposals as spots around their centres, on a map of the canvas, (B, N, `CELLS`, `CELLS`).

    Args:
        attention_BNC: sums to 1 over the proposals, as the map does over its cells.
        boxes_BC4: of the proposals, xyxy in [0, 1] of the canvas.
    """
    centres_BC2 = ((boxes_BC4[..., :2] + boxes_BC4[..., 2:]) / 2).clamp(0, 1)
    cells_G = (torch.arange(CELLS, device=boxes_BC4.device) + 0.5) / CELLS
    spots_BC2G = (-(((cells_G - centres_BC2[..., None]) / SPREAD) ** 2) / 2).softmax(-1)
    columns_BCW, rows_BCH = spots_BC2G.unbind(2)
    return torch.einsum("bnc,bch,bcw->bnhw", attention_BNC.float(), rows_BCH, columns_BCW)

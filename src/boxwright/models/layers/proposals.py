"""What detectors share whose queries start from proposals: proposals of all cells, and layers that refine the queries.

"Deformable DETR", section 4.2 (Zhu et al. 2021): each cell proposes a class and a box, the best proposals become
queries, and each decoder layer refines their boxes. Scores may be refined in the same way (`DuplicateBias`).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from boxwright.boxes import cxcywh_to_xyxy
from boxwright.models.layers.deformable_transformer import MultiScaleCells, Queries, inverse_sigmoid
from boxwright.models.layers.duplicate_relation import DuplicateBias

PRIOR = 0.01  # score of an untrained query
SIDE = 0.05  # of a proposal on the finest map before it is refined, in [0, 1]; twice that on the next map
Layer = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


class QueryProposals(NamedTuple):
    """Proposals of the encoder's cells.

    Attributes:
        logits_BTR: a score for each row of the head.
        boxes_BT4: centre and size, before the sigmoid.
        states_BTE: features of the cells.
        usable_BT: False where a cell is padding or too near the edge.
    """

    logits_BTR: Tensor
    boxes_BT4: Tensor
    states_BTE: Tensor
    usable_BT: Tensor


def propose(
    cells: MultiScaleCells, project: nn.Module, classify: nn.Module, locate: nn.Module, unusable: float = 0.0
) -> QueryProposals:
    """Each cell refines a square around it; cells too near the edge are not used (appendix A.4).

    Args:
        cells: of all maps.
        project: from states of cells to the features that propose.
        classify, locate: heads of scores and boxes.
        unusable: the square of a cell that is not used, before the sigmoid.
    """
    centres_BT2, level_T = cells.centres_BT2, cells.level_T
    sides_BT2 = (SIDE * 2.0**level_T)[:, None].expand_as(centres_BT2)
    squares_BT4 = torch.cat([centres_BT2, sides_BT2], -1)
    usable_BT = ((squares_BT4 > 0.01) & (squares_BT4 < 0.99)).all(-1) & ~cells.padding_BT
    states_BTE = project(cells.x_BTE * usable_BT[..., None])
    start_BT4 = torch.logit(squares_BT4).masked_fill(~usable_BT[..., None], unusable)
    boxes_BT4 = locate(states_BTE).float() + start_BT4
    return QueryProposals(classify(states_BTE).float(), boxes_BT4, states_BTE, usable_BT)


def best_cells(proposals: QueryProposals, most: int) -> Tensor:
    """The usable cells with the highest score of any class, (B, Q): `most` of them, or all."""
    score_BT = proposals.logits_BTR.amax(-1).masked_fill(~proposals.usable_BT, -torch.inf)
    return score_BT.topk(min(most, score_BT.shape[1])).indices


def start_from(proposals: QueryProposals, most: int, contents_QE: Tensor | None, scored: bool) -> Queries:
    """The best proposals as queries; no gradient flows back to the proposals.

    Args:
        proposals: of all cells.
        most: number of queries, where there are as many cells.
        contents_QE: learned states of the queries; None for those of the cells.
        scored: the queries bring the scores of the proposals.
    """
    best_BQ1 = best_cells(proposals, most)[..., None]
    logits_BTR, boxes_BT4, states_BTE, _ = (x.detach() for x in proposals)
    boxes_BQ4 = boxes_BT4.gather(1, best_BQ1.expand(-1, -1, 4)).sigmoid()
    if contents_QE is None:
        contents_BQE = states_BTE.gather(1, best_BQ1.expand(-1, -1, states_BTE.shape[-1]))
    else:
        contents_BQE = contents_QE[: best_BQ1.shape[1]].expand(best_BQ1.shape[0], -1, -1)
    logits_BQR = logits_BTR.gather(1, best_BQ1.expand(-1, -1, logits_BTR.shape[-1])) if scored else None
    return Queries(contents_BQE, boxes_BQ4, None, logits_BQR=logits_BQR)


def refine_box(boxes_BQX: Tensor, offsets_BQ4: Tensor) -> Tensor:
    """Boxes with offsets added before the sigmoid; where they are points, the offsets alone give the sizes."""
    return (offsets_BQ4 + nn.functional.pad(inverse_sigmoid(boxes_BQX), (0, 4 - boxes_BQX.shape[-1]))).sigmoid()


def refine_queries(
    queries: Queries,
    layers: Sequence[Layer],
    place: Callable[[Tensor], Tensor],
    classify: Iterable[nn.Module],
    locate: Iterable[nn.Module],
    duplicate_bias: DuplicateBias | None,
    refine: bool = True,
    forward_twice: bool = True,
) -> tuple[Tensor, Tensor]:
    """Scores before the sigmoid (L, B, Q, R) and boxes (L, B, Q, 4) after each layer.

    Args:
        queries: what the first layer gets.
        layers: from states, position encodings, boxes and mask of the queries to their new states.
        place: position encodings (B, Q, E) of boxes (B, Q, 4), where the queries don't bring theirs.
        classify, locate: heads of each layer; further ones are not used.
        duplicate_bias: refines the scores that the queries bring, from layer to layer; None for scores afresh in each.
        refine: the next layer gets the boxes of this one, instead of those at the beginning.
        forward_twice: the loss of a layer also reaches the layer before it through the boxes.
    """
    allowed_BQQ, scores_BQR = queries.allowed_BQQ, queries.logits_BQR
    boxes_BQX = refined_BQX = queries.boxes_BQX
    mask = None if allowed_BQQ is None else allowed_BQQ[:, None]
    if duplicate_bias is not None:
        assert scores_BQR is not None
        scores_BQR = duplicate_bias.lower_duplicates(scores_BQR, cxcywh_to_xyxy(boxes_BQX), allowed_BQQ)
    x_BQE, logits, boxes = queries.contents_BQE, [], []
    for n, (layer, score, offset) in enumerate(zip(layers, classify, locate, strict=False)):
        positions_BQE = queries.positions_BQE
        if positions_BQE is None:
            positions_BQE = place(boxes_BQX)
        if duplicate_bias is not None:
            mask = duplicate_bias(n, scores_BQR, cxcywh_to_xyxy(boxes_BQX), allowed_BQQ)
        x_BQE = layer(x_BQE, positions_BQE, boxes_BQX, mask)
        offsets_BQ4 = offset(x_BQE).float()
        logits.append(score(x_BQE).float())
        boxes.append(refine_box(refined_BQX, offsets_BQ4))
        if duplicate_bias is not None:
            logits[-1] = scores_BQR + logits[-1]
            scores_BQR = logits[-1].detach()
        if refine:
            refined_BQX = refine_box(boxes_BQX, offsets_BQ4)
            boxes_BQX = refined_BQX.detach()
            refined_BQX = refined_BQX if forward_twice else boxes_BQX
    return torch.stack(logits), torch.stack(boxes)


def init_heads(classify: nn.ModuleList, locate: nn.ModuleList, refined: bool) -> None:
    """Scores start at `PRIOR`, or, in all but the last head and if `refined`, at those given; boxes at those given."""
    for head in classify:
        nn.init.constant_(head.bias, -math.log((1 - PRIOR) / PRIOR))  # type: ignore[arg-type]
    for head in classify[:-1] if refined else ():
        nn.init.zeros_(head.weight)  # type: ignore[arg-type]
        nn.init.zeros_(head.bias)  # type: ignore[arg-type]
    for head in locate:
        nn.init.zeros_(head[-1].weight)  # type: ignore[index,arg-type]
        nn.init.zeros_(head[-1].bias)  # type: ignore[index,arg-type]

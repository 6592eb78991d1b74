"""What a proposal says about the tokens of a box: a distribution of each of its four sides over the vocabulary's bins.

A side follows a logistic distribution around the proposal's own, cut to the canvas, and a thousandth of a uniform one,
so that no token is impossible. Its scale is predicted, and so says how exactly the side is known.

A vocabulary writes a box as four sides of `bins` intervals each, in one token a side (`Vocabulary`) or in two for a
corner (`PatchVocabulary`). The probability of any token, given those before it, follows from the same intervals.
"""

from typing import NamedTuple

import torch
from torch import Tensor

UNIFORM = 1e-3  # share of the uniform distribution
FARTHEST = 8.0  # scales outside of the canvas; sides farther out would say nearly the same, but for rounding
WIDEST = 1.0  # scale of a side, in [0, 1] of the canvas: wider ones are uniform, too


class SideTables(NamedTuple):
    """The probability of each bin of the sides of C boxes; each sums to 1.

    Attributes:
        x1_BCX, y1_BCY, x2_BCX, y2_BCY: one row for each box.
    """

    x1_BCX: Tensor
    y1_BCY: Tensor
    x2_BCX: Tensor
    y2_BCY: Tensor


def side_tables(boxes_BC4: Tensor, spreads_BC4: Tensor, edges: tuple[Tensor, Tensor]) -> SideTables:
    """The tables of boxes.

    Args:
        boxes_BC4: xyxy in [0, 1] of the canvas.
        spreads_BC4: the scale of each side's distribution, in the same unit.
        edges: of the bins along x and along y, ascending, in the same unit.
    """
    tables = []
    for side in range(4):
        edges_X = edges[side % 2]
        below_BCX = _below(edges_X, *_near(boxes_BC4[..., side, None], spreads_BC4[..., side, None], edges_X))
        tables.append(_shares(below_BCX.diff(dim=-1), below_BCX[..., :1], below_BCX[..., -1:], len(edges_X) - 1))
    return SideTables(*tables)


def box_log_probs(boxes_BC4: Tensor, spreads_BC4: Tensor, bins_BM4: Tensor, edges: tuple[Tensor, Tensor]) -> Tensor:
    """The log-probability of M boxes for each of C proposals, (B, C, M): the sum over the sides.

    Args:
        boxes_BC4, spreads_BC4, edges: see `side_tables`.
        bins_BM4: the bins of the sides x1, y1, x2, y2, int64.
    """
    total_BCM = boxes_BC4.new_zeros(())
    for side in range(4):
        edges_X, bins_B1M = edges[side % 2], bins_BM4[:, None, :, side]
        at_BC1, spread_BC1 = _near(boxes_BC4[..., side, None], spreads_BC4[..., side, None], edges_X)
        first_BC1, low_BCM, high_BCM, last_BC1 = (
            _below(x, at_BC1, spread_BC1) for x in (edges_X[:1], edges_X[bins_B1M], edges_X[bins_B1M + 1], edges_X[-1:])
        )
        total_BCM = total_BCM + _shares(high_BCM - low_BCM, first_BC1, last_BC1, len(edges_X) - 1).log()
    return total_BCM


def _near(at: Tensor, spread: Tensor, edges_X: Tensor) -> tuple[Tensor, Tensor]:
    """The sides and their scales, moved to where the canvas has some probability, and each bin its own."""
    spread = spread.clamp(max=WIDEST)
    reach = FARTHEST * spread
    return torch.minimum(torch.maximum(at, edges_X[0] - reach), edges_X[-1] + reach), spread


def _below(edges: Tensor, at: Tensor, spread: Tensor) -> Tensor:
    """The probability that a side lies below each edge."""
    return ((edges - at) / spread).sigmoid()


def _shares(inside: Tensor, first: Tensor, last: Tensor, bins: int) -> Tensor:
    """Probabilities of bins, from that of each and those below the first and the last edge of the canvas.

    Where a bin is far from the side, rounding may give it less than nothing, in an exported file most of all.
    """
    return inside.clamp(min=0) / (last - first) * (1 - UNIFORM) + UNIFORM / bins


def mixed(weights_BNC: Tensor, factors: tuple[Tensor, ...]) -> Tensor:
    """The distribution of a token in a mixture of C boxes, (B, N, V).

    Args:
        weights_BNC: of the mixture.
        factors: the token's distribution in each box as a product: one factor (B, C, V), or (B, N, C, V) if it differs
            from object to object; or two whose tokens are counted row by row, (..., C, rows) and (..., C, columns).
    """
    if len(factors) == 1:
        (table,) = factors
        return weights_BNC @ table if table.ndim == 3 else (weights_BNC[:, :, None] @ table)[:, :, 0]
    rows_BNCR, columns_BNCQ = (table[:, None] if table.ndim == 3 else table for table in factors)
    return ((weights_BNC[..., None] * rows_BNCR).mT @ columns_BNCQ).flatten(-2)


def picked(factors: tuple[Tensor, ...], index_BN: Tensor) -> Tensor:
    """The probability of one token in each box, (B, N, C); for `factors` see `mixed`.

    Args:
        factors: of the token's slot.
        index_BN: the token, counted from the first of its slot.
    """
    if len(factors) == 1:
        return _picked(factors[0], index_BN)
    rows, columns = factors
    width = columns.shape[-1]
    return _picked(rows, index_BN // width) * _picked(columns, index_BN % width)


def _picked(table: Tensor, index_BN: Tensor) -> Tensor:
    """One column of a table (B, C, V), or (B, N, C, V), for each object, (B, N, C)."""
    if table.ndim == 3:
        return table.gather(2, index_BN[:, None].expand(-1, table.shape[1], -1)).mT
    return table.gather(3, index_BN[..., None, None].expand(-1, -1, table.shape[2], -1))[..., 0]

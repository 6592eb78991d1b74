"""One-to-one assignment of predictions to objects, for the whole batch."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


@torch.no_grad()
def match(cost_BNQ: Tensor, valid_BN: Tensor) -> Tensor:
    """The assignment of least total cost, one prediction per object.

    Args:
        cost_BNQ: cost of giving object n to prediction q; NaN and infinities count as very large.
        valid_BN: False on padding rows.

    Returns:
        (B, N) int64: the prediction of each object; -1 on padding rows, and on the objects left over where there are
        more objects than predictions.
    """
    matched_BN = torch.full_like(valid_BN, -1, dtype=torch.long)
    matched_BN[valid_BN] = match_packed(cost_BNQ[valid_BN][None], valid_BN.sum(1).tolist())[0]
    return matched_BN


@torch.no_grad()
def match_packed(cost_LMQ: Tensor, counts: Sequence[int]) -> Tensor:
    """`match` with the objects of all images in one dimension, for L sets of predictions at once.

    The costs go to the host in one copy; only the solver works image by image.

    Args:
        cost_LMQ: cost of giving object m to prediction q of its image.
        counts: objects of each image; their sum is M.

    Returns:
        (L, M) int64: the prediction of each object; -1 on those left over.
    """
    costs = cost_LMQ.float().nan_to_num(1e8, 1e8, -1e8).cpu().numpy()
    matched = np.full(costs.shape[:-1], -1)
    ends = list(pairwise(accumulate(counts, initial=0)))
    for cost, row in zip(costs, matched, strict=True):
        for first, last in ends:
            objects, predictions = linear_sum_assignment(cost[first:last])
            row[first + objects] = predictions
    return torch.from_numpy(matched).to(cost_LMQ.device)

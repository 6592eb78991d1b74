"""One-to-one assignment of predictions to objects, for the whole batch."""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


@torch.no_grad()
def match(cost_BNQ: Tensor, valid_BN: Tensor) -> Tensor:
    """The assignment of least total cost, one prediction an object.

    The costs go to the host in one copy; only the solver looks at images one by one.

    Args:
        cost_BNQ: cost of giving object n to prediction q; not-a-numbers and infinities count as very large. There may
            be dimensions in front, as for the layers of a decoder.
        valid_BN: False on padding rows.

    Returns:
        (..., B, N) int64: the prediction of each object; -1 on padding rows, and on the objects left over where
        there are more objects than predictions.
    """
    costs = cost_BNQ.float().nan_to_num(1e8, 1e8, -1e8).cpu().numpy()
    rows = [real_N.nonzero()[0] for real_N in valid_BN.cpu().numpy()]
    matched = np.full(costs.shape[:-1], -1)
    for place in np.ndindex(costs.shape[:-2]):
        real = rows[place[-1]]
        objects, predictions = linear_sum_assignment(costs[place][real])
        matched[place][real[objects]] = predictions
    return torch.from_numpy(matched).to(cost_BNQ.device)

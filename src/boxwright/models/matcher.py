"""One-to-one assignment of predictions to objects, for the whole batch."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


@torch.no_grad()
def match(cost_BNQ: Tensor, valid_BN: Tensor) -> Tensor:
    """The assignment of least total cost, one prediction an object.

    The costs go to the host in one copy; only the solver looks at images one by one.

    Args:
        cost_BNQ: cost of giving object n to prediction q; not-a-numbers and infinities count as very large.
        valid_BN: False on padding rows.

    Returns:
        (B, N) int64: the prediction of each object; -1 on padding rows, and on the objects left over where
        there are more objects than predictions.
    """
    costs = cost_BNQ.float().nan_to_num(1e8, 1e8, -1e8).cpu().numpy()
    valid = valid_BN.cpu().numpy()
    matched_BN = torch.full(valid.shape, -1)
    for image, (cost_NQ, real_N) in enumerate(zip(costs, valid, strict=True)):
        rows = real_N.nonzero()[0]
        objects, predictions = linear_sum_assignment(cost_NQ[rows])
        matched_BN[image, rows[objects]] = torch.from_numpy(predictions)
    return matched_BN.to(cost_BNQ.device)

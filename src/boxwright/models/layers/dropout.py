"""Dropout that costs a third less on a CPU, where most of its time goes into random numbers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`, but on a CPU one random number of 64 bits decides on four elements.

    Its probability is therefore a multiple of 2^-16.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Same shape as the input: each element is 0 or scaled by 1 / (1 - p); unchanged in evaluation mode."""
        if not self.training or self.p == 0 or input.device.type != "cpu":
            return F.dropout(input, self.p, self.training)
        draws = torch.empty(-(-input.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        kept = draws[: input.numel()].view(input.shape) >= round(self.p * 2**16) - 2**15
        return input * (kept.to(input.dtype) / (1 - self.p))

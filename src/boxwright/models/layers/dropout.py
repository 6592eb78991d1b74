"""Dropout that costs a third less on a CPU, where drawing the numbers is most of its work."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`, but on a CPU one random number of 64 bits decides on four elements.

    Its probability is therefore a multiple of 2^-16.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Same shape as given: elements are 0 or 1 / (1 - p) times what they were; in evaluation nothing changes."""
        if not self.training or self.p == 0 or input.device.type != "cpu":
            return F.dropout(input, self.p, self.training)
        draws = torch.empty(-(-input.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        kept = draws[: input.numel()].view(input.shape) >= round(self.p * 2**16) - 2**15
        return input * (kept.to(input.dtype) / (1 - self.p))

"""Which token may stand at which position of a sequence of objects."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenConstraints:
    """All that generation must know of a detector's tokens.

    A sequence is `start`, then objects of `slots` tokens each, then perhaps `end`, which also fills the rest.

    Attributes:
        start: the token before the first object; it is not part of the result.
        end: the token after the last object.
        allowed_PV: the tokens allowed at position p of a sequence, bool: row p modulo P. P is a multiple of `slots`.
        class_tokens_K: the classes' tokens, in the order of the names.
        slots: tokens of an object.
        class_slot: which of them is the class.
        at_least: for each slot, the earlier slot of the same object whose token is the least allowed (y1 for y2), or
            None; empty for none at all.
        ranks_RV: the order behind `at_least`: a token is less than another if one of its ranks is; by default the id.
        coordinates: ids of coordinates, where a slot allows other tokens, too: the most probable coordinate is then
            kept beside the token.
    """

    start: int
    end: int
    allowed_PV: Tensor
    class_tokens_K: Tensor
    slots: int = 5
    class_slot: int = 4
    at_least: tuple[int | None, ...] = ()
    ranks_RV: Tensor | None = None
    coordinates: range | None = None

    def __post_init__(self) -> None:
        assert len(self.allowed_PV) % self.slots == 0, f"{len(self.allowed_PV)} rows for objects of {self.slots} tokens"
        assert len(self.at_least) in (0, self.slots)
        assert all(low is None or low < slot for slot, low in enumerate(self.at_least))

    def below(self, least_B1: Tensor) -> Tensor:
        """(B, V): which tokens are less than these."""
        if self.ranks_RV is None:
            return torch.arange(self.allowed_PV.shape[1], device=least_B1.device) < least_B1
        return (self.ranks_RV[:, None] < self.ranks_RV[:, least_B1]).any(0)

    def additions(self, end_bias: float) -> Tensor:
        """What is added to the logits, (P, V): -inf where a token is not allowed, `end_bias` to the end.

        The end is allowed where an object could begin, unless the bias is -inf. A table that allows it elsewhere, as
        one that allows everything does, gets the same bias there; with -inf such a table stays as it is: the token is
        generated like any other, and nothing ends.
        """
        added_PV = torch.zeros(self.allowed_PV.shape, device=self.allowed_PV.device)
        if end_bias > -torch.inf:
            added_PV[:, self.end] = end_bias
        ends_PV = torch.zeros_like(self.allowed_PV)
        ends_PV[:: self.slots, self.end] = end_bias > -torch.inf
        return added_PV.masked_fill(~(self.allowed_PV | ends_PV), -torch.inf)

"""No object twice in a sequence: which tokens still lead to a new object, counted exactly, so without dead ends."""

from collections.abc import Sequence

import torch
from torch import Tensor

from boxwright.models.sequence.token_constraints import TokenConstraints


class NoRepeat:
    """Keeps track of the objects of sequences that are being generated.

    A token is forbidden where every object that could begin with it, and with the tokens before it, has been generated.
    Objects are the same if all their tokens are: one bin more, or another class, makes another object.

    Args:
        constraints: the same for all objects.
        tokens_BNS: buffer of the objects, filled while they are generated.
        given_BGS: the first objects, -1 where a sequence has no more.

    Attributes:
        objects: how many different objects there are.
    """

    def __init__(self, constraints: TokenConstraints, tokens_BNS: Tensor, given_BGS: Tensor | None = None):
        assert len(constraints.allowed_PV) == constraints.slots, "the constraints must be the same for all objects"
        assert constraints.ranks_RV is None, "tokens are counted by their ids"
        self.slots, self.tokens_BNS = constraints.slots, tokens_BNS
        self.lows = constraints.at_least or (None,) * constraints.slots
        allowed_SV = constraints.allowed_PV.clone()
        allowed_SV[0, constraints.end] = False
        self.allowed_SV = allowed_SV
        self.from_SV = allowed_SV.double().flip(1).cumsum(1).flip(1)  # how many allowed tokens are at least this one
        self.choices_S = [self._choices(slot) for slot in range(self.slots)]
        self.objects = self._open(-1)
        self.counted_BN = torch.ones_like(tokens_BNS[..., 0], dtype=torch.bool)
        if given_BGS is not None:
            self.counted_BN[:, : given_BGS.shape[1]] = self._counted(given_BGS) | (given_BGS[..., 0] < 0)
        self.alike_BN = self.counted_BN

    def begin(self, number_1: Tensor) -> None:
        """The `number_1`-th object begins."""
        self.alike_BN = self.counted_BN & (torch.arange(self.tokens_BNS.shape[1], device=number_1.device) < number_1)

    def used_up(self, slot: int, tokens: Sequence[Tensor]) -> Tensor:
        """(B, V): tokens at this slot that lead to no new object, after these tokens (B, 1) of the object."""
        count_BV = self.from_SV.new_zeros(len(self.tokens_BNS), self.from_SV.shape[1])
        count_BV.scatter_add_(1, self.tokens_BNS[..., slot], self.alike_BN.double())
        return count_BV >= self._completions(slot, tokens)

    def note(self, slot: int, chosen_B1: Tensor) -> None:
        """The token at this slot has been chosen."""
        self.alike_BN = self.alike_BN & (self.tokens_BNS[..., slot] == chosen_B1)

    def _completions(self, slot: int, tokens: Sequence[Tensor]) -> Tensor:
        """How many objects begin with the tokens before this slot and the token v, (B or 1, V)."""
        count_BV = torch.full_like(self.from_SV[:1], self._open(slot))
        for later in range(slot + 1, self.slots):
            low = self.lows[later]
            if low == slot:
                count_BV = count_BV * self.from_SV[later]
            elif low is not None and low < slot:
                count_BV = count_BV * self.from_SV[later][tokens[low]]
        return count_BV

    def _open(self, slot: int) -> float:
        """Choices behind this slot that don't depend on the tokens up to it."""
        count = 1.0
        for later in range(slot + 1, self.slots):
            count *= self.choices_S[later] if self.lows[later] is None else 1
        return count

    def _choices(self, slot: int) -> float:
        """Tokens of this slot, times those of the slots that it bounds."""
        count_V = self.allowed_SV[slot].double()
        for later, low in enumerate(self.lows):
            if low == slot:
                count_V = count_V * self.from_SV[later]
        return float(count_V.sum())

    def _counted(self, given_BGS: Tensor) -> Tensor:
        """Given objects that the constraints allow, each once."""
        alike_BGG = (given_BGS[:, :, None] == given_BGS[:, None]).all(-1)
        slots = torch.arange(self.slots, device=given_BGS.device)
        known_BG = self.allowed_SV[slots, given_BGS].all(-1) & ~alike_BGG.tril(-1).any(-1)
        for slot, low in enumerate(self.lows):
            if low is not None:
                known_BG &= given_BGS[..., slot] >= given_BGS[..., low]
        return known_BG

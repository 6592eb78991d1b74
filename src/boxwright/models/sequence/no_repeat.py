"""No object twice in a sentence: what may still be written, counted exactly, so that no word leads into a dead end."""

import torch
from torch import Tensor

from boxwright.models.sequence.token_constraints import TokenConstraints


class NoRepeat:
    """Watches over sentences that are being written.

    A word is forbidden where every object that could begin with it, and with the words before it, has been written.
    Objects are the same if all their words are: one bin more, or another class, makes another object.

    Args:
        grammar: the same for all objects.
        tokens_BNS: room for the objects, filled in place while they are written.
        given_BGS: the first objects, -1 where a sentence has no more.

    Attributes:
        objects: how many different objects there are.
    """

    def __init__(self, grammar: TokenConstraints, tokens_BNS: Tensor, given_BGS: Tensor | None = None):
        assert len(grammar.allowed_PV) == grammar.slots, "repeats need one grammar for all objects"
        assert grammar.ranks_RV is None, "repeats count words by their ids"
        self.slots, self.tokens_BNS = grammar.slots, tokens_BNS
        self.lows = grammar.at_least or (None,) * grammar.slots
        allowed_SV = grammar.allowed_PV.clone()
        allowed_SV[0, grammar.end] = False
        self.allowed_SV = allowed_SV
        self.from_SV = allowed_SV.double().flip(1).cumsum(1).flip(1)  # how many allowed words are at least this one
        self.choices_S = [self._choices(slot) for slot in range(self.slots)]
        self.objects = self._open(-1)
        self.counted_BN = torch.ones_like(tokens_BNS[..., 0], dtype=torch.bool)
        if given_BGS is not None:
            self.counted_BN[:, : given_BGS.shape[1]] = self._counted(given_BGS) | (given_BGS[..., 0] < 0)
        self.alike_BN = self.counted_BN

    def begin(self, number_1: Tensor) -> None:
        """The `number_1`-th object begins."""
        self.alike_BN = self.counted_BN & (torch.arange(self.tokens_BNS.shape[1], device=number_1.device) < number_1)

    def used_up(self, slot: int, begun_BS: Tensor) -> Tensor:
        """(B, V): which words at this slot lead nowhere new; `begun_BS` has the words before it."""
        count_BV = torch.zeros(len(begun_BS), self.from_SV.shape[1], dtype=torch.double, device=begun_BS.device)
        count_BV.scatter_add_(1, self.tokens_BNS[..., slot], self.alike_BN.double())
        return count_BV >= self._completions(slot, begun_BS)

    def note(self, slot: int, chosen_B1: Tensor) -> None:
        """The word at this slot has been chosen."""
        self.alike_BN = self.alike_BN & (self.tokens_BNS[..., slot] == chosen_B1)

    def _completions(self, slot: int, begun_BS: Tensor) -> Tensor:
        """How many objects begin with the words before this slot and the word v, (B or 1, V)."""
        count_BV = torch.full_like(self.from_SV[:1], self._open(slot))
        for later in range(slot + 1, self.slots):
            low = self.lows[later]
            if low == slot:
                count_BV = count_BV * self.from_SV[later]
            elif low is not None and low < slot:
                count_BV = count_BV * self.from_SV[later][begun_BS[:, low, None]]
        return count_BV

    def _open(self, slot: int) -> float:
        """Choices behind this slot that don't depend on the words up to it."""
        count = 1.0
        for later in range(slot + 1, self.slots):
            count *= self.choices_S[later] if self.lows[later] is None else 1
        return count

    def _choices(self, slot: int) -> float:
        """Words of this slot, times those of the slots that it bounds."""
        count_V = self.allowed_SV[slot].double()
        for later, low in enumerate(self.lows):
            if low == slot:
                count_V = count_V * self.from_SV[later]
        return float(count_V.sum())

    def _counted(self, given_BGS: Tensor) -> Tensor:
        """Of given objects, those that the grammar knows, each once."""
        alike_BGG = (given_BGS[:, :, None] == given_BGS[:, None]).all(-1)
        slots = torch.arange(self.slots, device=given_BGS.device)
        known_BG = self.allowed_SV[slots, given_BGS].all(-1) & ~alike_BGG.tril(-1).any(-1)
        for slot, low in enumerate(self.lows):
            if low is not None:
                known_BG &= given_BGS[..., slot] >= given_BGS[..., low]
        return known_BG

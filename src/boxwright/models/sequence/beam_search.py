"""Beam search by whole objects.

Token by token, the neighbours of the best coordinate would fill a beam: the same box, one bin off. Here each of W
sentences branches at the first token of an object into its W best, all W x W go on greedily to the end of the object,
and then the best W by their mean log-probability a token stay. The greedy sentence is always one of them, so that the
result is never less probable, a token, than the greedy one.
"""

from typing import Any

import torch
from torch import Tensor

from boxwright.models.sequence.generation import Generated, Generation, StepDecoder
from boxwright.models.sequence.sampling import Sampling
from boxwright.models.sequence.token_constraints import TokenConstraints


class BeamSearch(Generation):
    """Sentences that compete; B images have B x W x W rows, W of them alive after each object.

    Args:
        as of `boxwright.models.sequence.generate.generate`; `sampling.beams` is W, and nothing is drawn.
    """

    def __init__(
        self,
        decoder: StepDecoder,
        memory: Any,
        grammar: TokenConstraints,
        objects: int,
        sampling: Sampling,
        given_BL: Tensor | None = None,
    ):
        assert not sampling.draws, "beams draw nothing"
        self.width = sampling.beams
        branches = self.width**2
        given_BL = None if given_BL is None else given_BL.repeat_interleave(branches, 0)
        super().__init__(decoder, memory, grammar, objects, sampling, given_BL, branches)
        self.rows_BWW = torch.arange(self.cache.rows, device=self.ids_V.device).view(-1, self.width, self.width)
        self.branch_B1 = (self.rows_BWW % self.width).view(-1, 1)
        self.count_B1 = torch.zeros_like(self.position_1).expand(self.cache.rows, 1).clone()  # tokens written
        self.bias_B1 = torch.zeros_like(self.log_probs_BL[:, :1])  # of their end tokens, which counts as well
        self.alive_BWW = torch.zeros_like(self.rows_BWW, dtype=torch.bool)
        self.alive_BWW[:, 0] = True  # so far all are the same

    def generate_object(self, number: int) -> None:
        """The next object of every branch; then the best become the next sentences."""
        was_ended_BWW = self.ended_B1.view(self.rows_BWW.shape).clone()
        super().generate_object(number)
        self.alive_BWW &= ~was_ended_BWW | (self.rows_BWW % self.width == 0)  # what has ended has no branches
        marks_BWW = self._marks().masked_fill(~self.alive_BWW, -torch.inf)
        marks_BWW[:, 0, 0] = torch.inf  # the greedy sentence
        best = marks_BWW.flatten(1).topk(self.width)
        self.alive_BWW = (best.values > -torch.inf)[..., None].expand_as(self.rows_BWW).clone()
        parents_BW = self.rows_BWW.flatten(1).gather(1, best.indices)
        self._reorder(parents_BW.repeat_interleave(self.width, 1).flatten(), number + 1)

    def result(self) -> Generated:
        """The best sentence of each image."""
        marks_BW = self._marks().masked_fill(~self.alive_BWW, -torch.inf)[..., 0]
        rows_B = self.rows_BWW[..., 0].gather(1, marks_BW.argmax(1, keepdim=True)).flatten()
        return Generated(*(tensor.index_select(0, rows_B) for tensor in super().result()))

    def _choose(self, scores_BV: Tensor, slot: int) -> Tensor:
        """Each branch begins an object with another token, the first with the best; then the best follow."""
        if slot > 0:
            return super()._choose(scores_BV, slot)
        best = scores_BV.topk(self.width)
        possible_B1 = best.values.gather(1, self.branch_B1) > -torch.inf
        self.alive_BWW &= possible_B1.view(self.alive_BWW.shape)
        return best.indices.gather(1, self.branch_B1)

    def _fix(self, chosen_B1: Tensor) -> tuple[Tensor, Tensor]:
        """Also count the tokens, and note the bias of sentences that end here."""
        chosen_B1, fixed_B1 = super()._fix(chosen_B1)
        self.count_B1 += ~fixed_B1
        if self.sampling.may_end:
            self.bias_B1 += self.sampling.end_bias * ((chosen_B1 == self.constraints.end) & ~fixed_B1)
        return chosen_B1, fixed_B1

    def _marks(self) -> Tensor:
        """Mean log-probability of the tokens written so far, the end with its bias, (B, W, W)."""
        marks_B1 = (self.log_probs_BL.sum(1, keepdim=True) + self.bias_B1) / self.count_B1.clamp(min=1)
        return marks_B1.view(self.rows_BWW.shape)

    def _reorder(self, rows_B: Tensor, objects: int) -> None:
        """Row i becomes what row `rows_B[i]` was; so many objects have been written."""
        self.cache.first(objects * self.constraints.slots).reorder(rows_B)
        written = (self.tokens_BL, self.log_probs_BL, self.class_log_probs_BNK)
        for tensor in (*written, self.ended_B1, self.count_B1, self.bias_B1):
            tensor.copy_(tensor.index_select(0, rows_B))

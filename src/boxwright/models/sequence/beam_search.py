"""Beam search by whole objects.

Token by token, the neighbours of the best coordinate would fill a beam: the same box, one bin off. Here each of W
sequences branches at the first token of an object into its W best, all W x W go on greedily to the end of the object,
and then the W best by their mean log-probability per token stay. The greedy sequence is always one of them, so that the
result is never less probable, per token, than the greedy one.
"""

from typing import Any

import torch
from torch import Tensor

from boxwright.models.sequence.generation import Generated, GeneratedObject, Generation, StepDecoder
from boxwright.models.sequence.sampling import Sampling
from boxwright.models.sequence.token_constraints import TokenConstraints


class BeamSearch(Generation):
    """Sequences that compete; B images have B x W x W rows, W of them alive after each object.

    Args:
        decoder, memory, constraints, objects, given_BL: see `boxwright.models.sequence.generate.generate`.
        sampling: `beams` is W, and nothing is drawn.
    """

    def __init__(
        self,
        decoder: StepDecoder,
        memory: Any,
        constraints: TokenConstraints,
        objects: int,
        sampling: Sampling,
        given_BL: Tensor | None = None,
    ):
        assert not sampling.draws, "beams draw nothing"
        self.width = sampling.beams
        branches = self.width**2
        given_BL = None if given_BL is None else given_BL.repeat_interleave(branches, 0)
        super().__init__(decoder, memory, constraints, objects, sampling, given_BL, branches, self._choose)
        self.rows_BWW = torch.arange(self.cache.rows, device=self.tokens_BL.device).view(-1, self.width, self.width)
        self.branch_B1 = (self.rows_BWW % self.width).view(-1, 1)
        self.count_B1 = torch.zeros_like(self.position_1).expand(self.cache.rows, 1).clone()  # generated tokens
        self.bias_B1 = torch.zeros_like(self.log_probs_BL[:, :1])  # of their end tokens, which counts as well
        self.alive_BWW = torch.zeros_like(self.rows_BWW, dtype=torch.bool)
        self.alive_BWW[:, 0] = True  # so far all are the same

    def generate_object(self, number: int) -> GeneratedObject:
        """The next object of every branch; then the best become the next sequences."""
        was_ended_BWW = self.ended_B1.view(self.rows_BWW.shape).clone()
        made = super().generate_object(number)
        self.count_B1 += (~made.fixed_BS).sum(1, keepdim=True)
        if self.sampling.may_end:
            chosen_end_BS = (made.tokens_BS == self.constraints.end) & ~made.fixed_BS
            self.bias_B1 += self.sampling.end_bias * chosen_end_BS.sum(1, keepdim=True)
        self.alive_BWW &= ~was_ended_BWW | (self.rows_BWW % self.width == 0)  # what has ended has no branches
        marks_BWW = self._marks().masked_fill(~self.alive_BWW, -torch.inf)
        marks_BWW[:, 0, 0] = torch.inf  # the greedy sequence
        best = marks_BWW.flatten(1).topk(self.width)
        self.alive_BWW = (best.values > -torch.inf)[..., None].expand_as(self.rows_BWW).clone()
        parents_BW = self.rows_BWW.flatten(1).gather(1, best.indices)
        self._reorder(parents_BW.repeat_interleave(self.width, 1).flatten(), number + 1)
        return made

    def result(self) -> Generated:
        """The best sequence of each image."""
        marks_BW = self._marks().masked_fill(~self.alive_BWW, -torch.inf)[..., 0]
        rows_B = self.rows_BWW[..., 0].gather(1, marks_BW.argmax(1, keepdim=True)).flatten()
        tokens_BL, log_probs_BL, class_log_probs_BNK, coordinates_BNC = super().result()
        return Generated(
            tokens_BL.index_select(0, rows_B),
            log_probs_BL.index_select(0, rows_B),
            class_log_probs_BNK.index_select(0, rows_B),
            None if coordinates_BNC is None else coordinates_BNC.index_select(0, rows_B),
        )

    def _choose(self, logits_BV: Tensor, slot: int, draws_B1: Tensor | None) -> Tensor:
        """Each branch begins an object with another token, the first with the best; then the best follow."""
        if slot > 0:
            return logits_BV.argmax(-1, keepdim=True)
        best = logits_BV.topk(self.width)
        possible_B1 = best.values.gather(1, self.branch_B1) > -torch.inf
        self.alive_BWW &= possible_B1.view(self.alive_BWW.shape)
        return best.indices.gather(1, self.branch_B1)

    def _marks(self) -> Tensor:
        """Mean log-probability of the tokens generated so far, the end with its bias, (B, W, W)."""
        marks_B1 = (self.log_probs_BL.sum(1, keepdim=True) + self.bias_B1) / self.count_B1.clamp(min=1)
        return marks_B1.view(self.rows_BWW.shape)

    def _reorder(self, rows_B: Tensor, objects: int) -> None:
        """Row i becomes what row `rows_B[i]` was; so many objects have been generated."""
        self.cache.first(objects * self.constraints.slots).reorder(rows_B)
        generated = (self.tokens_BL, self.log_probs_BL, self.class_log_probs_BNK, self.coordinates_BNC)
        for tensor in (*generated, self.ended_B1, self.count_B1, self.bias_B1):
            if tensor is not None:
                tensor.copy_(tensor.index_select(0, rows_B))

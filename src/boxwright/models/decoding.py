"""The one engine that generates sentences, for every detector that writes them: token after token.

It knows a decoder only by its two methods (`Writing`), and its language by a `Grammar`. All that changes while a
sentence is written lies in tensors of fixed shapes, the position, too: the device is never waited for between two
tokens, and the work for one object can be compiled, or recorded as a CUDA graph and played again.
"""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from boxwright.models.caches import Cache
from boxwright.models.grammar import Grammar
from boxwright.models.sampling import Sampling, choose, draws

GREEDY = Sampling()
BUCKET = 16  # objects: attention looks at the places of whole buckets


class Writing(Protocol):
    """What a decoder must be able to do."""

    def start(self, memory: Any, length: int, each: int = 1, /) -> Cache:
        """An empty cache for `each` sentences an image, of at most `length` tokens.

        `memory` is what the detector's own encoder gives.
        """
        ...

    def step(self, tokens_BL: Tensor, positions_L: Tensor, cache: Cache, /) -> Tensor:
        """Scores (B, V), float32, of what follows the last of the tokens, which are added to the cache in place.

        Args:
            tokens_BL: one token, or a whole prompt.
            positions_L: where they stand in the sentence; the start token stands at 0.
            cache: its length bounds the positions.
        """
        ...


class Generated(NamedTuple):
    """Sentences, and what the decoder thought of them.

    Attributes:
        tokens_BL: objects, then the end token; without the start token.
        log_probs_BL: of each token among all tokens of the vocabulary, without grammar, temperature or bias. 0 for
            given tokens and behind the end.
        class_log_probs_BNK: of each class at the class slot of each object, in the same measure. -inf for given
            objects and behind the end.
    """

    tokens_BL: Tensor
    log_probs_BL: Tensor
    class_log_probs_BNK: Tensor


@torch.no_grad()
def generate(
    decoder: Writing,
    memory: Any,
    grammar: Grammar,
    objects: int,
    sampling: Sampling = GREEDY,
    given_BL: Tensor | None = None,
) -> Generated:
    """Sentences of at most this many objects.

    Where sentences may end, the device is asked once an object whether all have.

    Args:
        decoder: in evaluation mode.
        memory: what it looks at.
        grammar: its language.
        objects: how many, given ones included.
        sampling: how to choose.
        given_BL: the first tokens of each sentence, whole objects, and -1 behind the last of a row.
    """
    draft = Draft(decoder, memory, grammar, objects, sampling, given_BL)
    for number in range(draft.done, objects):
        if sampling.end_bias > -torch.inf and bool(draft.ended_B1.all()):
            break
        draft.write_object(number)
    return Generated(draft.tokens_BL[:, 1:], draft.log_probs_BL[:, 1:], draft.class_log_probs_BNK)


class Draft:
    """Sentences being written.

    Args:
        as of `generate`.

    Attributes:
        done: objects that stand already in every sentence.
        tokens_BL: the start token, and what is written.
        log_probs_BL, class_log_probs_BNK: as of `Generated`, with a place for the start token.
        ended_B1: sentences that have ended.
        position_1: of the last token.
    """

    def __init__(
        self,
        decoder: Writing,
        memory: Any,
        grammar: Grammar,
        objects: int,
        sampling: Sampling,
        given_BL: Tensor | None = None,
    ):
        self.decoder, self.grammar, self.sampling = decoder, grammar, sampling
        self.length = objects * grammar.slots
        self.cache = decoder.start(memory, -(-self.length // 8) * 8)  # GPUs like lengths that 8 divides
        rows, device = self.cache.rows, grammar.allowed_PV.device
        self.ids_V = torch.arange(grammar.allowed_PV.shape[1], device=device)
        self.added_PV = grammar.additions(sampling.end_bias)
        self.uniforms_BL = draws(sampling.seed, rows, self.length).to(device)
        self.tokens_BL = torch.full((rows, self.length + 1), grammar.end, device=device)
        self.tokens_BL[:, 0] = grammar.start
        self.log_probs_BL = torch.zeros(rows, self.length + 1, device=device)
        classes = len(grammar.class_tokens_K)
        self.class_log_probs_BNK = torch.full((rows, objects, classes), -torch.inf, device=device)
        self.ended_B1 = torch.zeros(rows, 1, dtype=torch.bool, device=device)
        self.position_1 = torch.zeros(1, dtype=torch.int64, device=device)
        self.forced_BL: Tensor | None = None
        self.done = 0
        if given_BL is not None:
            self._begin_with(given_BL.to(device))

    def _begin_with(self, given_BL: Tensor) -> None:
        """Objects that every sentence has are read at once; the others are put in place of what would be written."""
        counts_B = (given_BL >= 0).sum(1)
        self.done = int(counts_B.min()) // self.grammar.slots
        start = self.done * self.grammar.slots
        self.tokens_BL[:, 1 : start + 1] = given_BL[:, :start]
        self.position_1.fill_(start)
        if start:
            self.decoder.step(self.tokens_BL[:, :start], torch.arange(start, device=given_BL.device), self.cache)
        if int(counts_B.max()) > start:
            self.forced_BL = torch.full_like(self.tokens_BL[:, 1:], -1)
            self.forced_BL[:, : given_BL.shape[1]] = given_BL

    def write_object(self, number: int) -> None:
        """The next object, which is the `number`-th, of every sentence."""
        slots = self.grammar.slots
        bucket = -(-(number + 1) // BUCKET) * BUCKET * slots
        cache = self.cache.first(bucket)
        for slot in range(slots):
            self._write(cache, number * slots + slot, slot)

    def _write(self, cache: Cache, row: int, slot: int) -> None:
        """The next token; `row` is used modulo the period of the grammar alone."""
        scores_BV = self.decoder.step(self.tokens_BL.index_select(1, self.position_1), self.position_1, cache)
        total_B1 = scores_BV.logsumexp(-1, keepdim=True)
        uniform_B1 = self.uniforms_BL.index_select(1, self.position_1)
        chosen_B1 = choose(self._grammatical(scores_BV, row, slot), self.sampling, uniform_B1)
        fixed_B1 = self.ended_B1
        if self.forced_BL is not None:
            forced_B1 = self.forced_BL.index_select(1, self.position_1)
            chosen_B1 = torch.where(forced_B1 < 0, chosen_B1, forced_B1)
            fixed_B1 = fixed_B1 | (forced_B1 >= 0)
        if self.sampling.end_bias > -torch.inf:
            chosen_B1 = chosen_B1.masked_fill(self.ended_B1, self.grammar.end)
        log_probs_B1 = (scores_BV.gather(1, chosen_B1) - total_B1).masked_fill(fixed_B1, 0)
        if self.sampling.end_bias > -torch.inf:
            self.ended_B1 |= chosen_B1 == self.grammar.end
        if slot == self.grammar.class_slot:
            classes_BK = scores_BV.index_select(1, self.grammar.class_tokens_K) - total_B1
            classes_BK = classes_BK.masked_fill(fixed_B1 | self.ended_B1, -torch.inf)
            self.class_log_probs_BNK.index_copy_(1, self.position_1 // self.grammar.slots, classes_BK[:, None])
        self.position_1 += 1
        self.tokens_BL.index_copy_(1, self.position_1, chosen_B1)
        self.log_probs_BL.index_copy_(1, self.position_1, log_probs_B1)

    def _grammatical(self, scores_BV: Tensor, row: int, slot: int) -> Tensor:
        """Scores with -inf for all that the grammar forbids at this place."""
        scores_BV = scores_BV + self.added_PV[row % len(self.added_PV)]
        low = self.grammar.at_least[slot] if self.grammar.at_least else None
        if low is None:
            return scores_BV
        least_B1 = self.tokens_BL.index_select(1, self.position_1 + 1 - slot + low)
        return scores_BV.masked_fill(self.ids_V < least_B1, -torch.inf)

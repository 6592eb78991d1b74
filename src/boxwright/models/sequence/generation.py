"""Sentences while they are written, token after token, by any decoder and in any language.

All that changes lies in tensors of fixed shapes, the position, too: the device is never waited for between two tokens,
and the work for one object can be compiled, or recorded as a CUDA graph and played again.
"""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from boxwright.models.layers.kv_cache import KVCache
from boxwright.models.sequence.no_repeat import NoRepeat
from boxwright.models.sequence.sampling import Sampling, choose, draws
from boxwright.models.sequence.token_constraints import TokenConstraints

BUCKET = 16  # objects: attention looks at the places of whole buckets


class StepDecoder(Protocol):
    """What a decoder must be able to do."""

    def start(self, memory: Any, length: int, each: int = 1, /) -> KVCache:
        """An empty cache for `each` sentences an image, of at most `length` tokens.

        `memory` is what the detector's own encoder gives.
        """
        ...

    def step(self, tokens_BL: Tensor, positions_L: Tensor, cache: KVCache, /) -> Tensor:
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


class Generation:
    """Sentences being written.

    Args:
        decoder, memory, grammar, objects, sampling, given_BL: as of `boxwright.models.sequence.generate.generate`.
        each: sentences an image.

    Attributes:
        done: objects that stand already in every sentence.
        position_1: of the last token.
        ended_B1: sentences that have ended.
        tokens_BL, log_probs_BL, class_log_probs_BNK: as of `Generated`, with a place for the start token.
    """

    def __init__(
        self,
        decoder: StepDecoder,
        memory: Any,
        grammar: TokenConstraints,
        objects: int,
        sampling: Sampling,
        given_BL: Tensor | None = None,
        each: int = 1,
    ):
        self.decoder, self.constraints, self.sampling = decoder, grammar, sampling
        self.length, device = objects * grammar.slots, grammar.allowed_PV.device
        self.cache = decoder.start(memory, -(-self.length // 8) * 8, each)  # GPUs like lengths that 8 divides
        rows, classes = self.cache.rows, len(grammar.class_tokens_K)
        self.ids_V = torch.arange(grammar.allowed_PV.shape[1], device=device)
        self.added_PV = grammar.additions(sampling.end_bias)
        self.uniforms_BL = draws(sampling.seed, rows // each, self.length).repeat_interleave(each, 0).to(device)
        self.first_object = 0
        self.position_1 = torch.zeros(1, dtype=torch.int64, device=device)
        self.ended_B1 = torch.zeros(rows, 1, dtype=torch.bool, device=device)
        self.tokens_BL = torch.full((rows, self.length + 1), grammar.end, device=device)
        self.tokens_BL[:, 0] = grammar.start
        self.log_probs_BL = torch.zeros(rows, self.length + 1, device=device)
        self.class_log_probs_BNK = torch.full((rows, objects, classes), -torch.inf, device=device)
        self.forced_BL: Tensor | None = None
        if given_BL is not None:
            self._begin_with(given_BL.to(device))
        self.repeats = None if sampling.repeats else self._watch_repeats(given_BL, objects)

    def result(self) -> Generated:
        """What has been written."""
        return Generated(self.tokens_BL[:, 1:], self.log_probs_BL[:, 1:], self.class_log_probs_BNK)

    def generate_object(self, number: int) -> None:
        """The next object, which is the `number`-th, of every sentence."""
        slots = self.constraints.slots
        cache = self.cache.first(self.bucket(number))
        if self.repeats is not None:
            self.repeats.begin(self.position_1 // slots)
        for slot in range(slots):
            self._write(cache, number * slots + slot, slot)

    def bucket(self, number: int) -> int:
        """How many places of the cache the `number`-th object looks at."""
        return -(-(number + 1) // BUCKET) * BUCKET * self.constraints.slots

    def _begin_with(self, given_BL: Tensor) -> None:
        """Objects that every sentence has are read at once; the others are put in place of what would be written."""
        counts_B = (given_BL >= 0).sum(1)
        self.first_object = int(counts_B.min()) // self.constraints.slots
        start = self.first_object * self.constraints.slots
        self.tokens_BL[:, 1 : start + 1] = given_BL[:, :start]
        self.position_1.fill_(start)
        if start:
            self.decoder.step(self.tokens_BL[:, :start], torch.arange(start, device=given_BL.device), self.cache)
        if int(counts_B.max()) > start:
            self.forced_BL = torch.full_like(self.tokens_BL[:, 1:], -1)
            self.forced_BL[:, : given_BL.shape[1]] = given_BL

    def _watch_repeats(self, given_BL: Tensor | None, objects: int) -> NoRepeat:
        slots = self.constraints.slots
        given_BGS = None if given_BL is None else given_BL.to(self.ids_V.device).unflatten(1, (-1, slots))
        repeats = NoRepeat(self.constraints, self.tokens_BL[:, 1:].unflatten(1, (-1, slots)), given_BGS)
        assert objects <= repeats.objects, f"there are no {objects} different objects"
        return repeats

    def _write(self, cache: KVCache, place: int, slot: int) -> None:
        """The next token; of its place in the sentence only that in the grammar's period is looked at."""
        scores_BV = self.decoder.step(self.tokens_BL.index_select(1, self.position_1), self.position_1, cache)
        total_B1 = scores_BV.logsumexp(-1, keepdim=True)
        chosen_B1, fixed_B1 = self._fix(self._choose(self._grammatical(scores_BV, place, slot), slot))
        log_probs_B1 = (scores_BV.gather(1, chosen_B1) - total_B1).masked_fill(fixed_B1, 0)
        if self.sampling.may_end:
            self.ended_B1 |= chosen_B1 == self.constraints.end
        if slot == self.constraints.class_slot:
            classes_BK = scores_BV.index_select(1, self.constraints.class_tokens_K) - total_B1
            classes_BK = classes_BK.masked_fill(fixed_B1 | self.ended_B1, -torch.inf)
            self.class_log_probs_BNK.index_copy_(1, self.position_1 // self.constraints.slots, classes_BK[:, None])
        if self.repeats is not None:
            self.repeats.note(slot, chosen_B1)
        self.position_1 += 1
        self.tokens_BL.index_copy_(1, self.position_1, chosen_B1)
        self.log_probs_BL.index_copy_(1, self.position_1, log_probs_B1)

    def _grammatical(self, scores_BV: Tensor, place: int, slot: int) -> Tensor:
        """Scores with -inf for all that may not stand here."""
        scores_BV = scores_BV + self.added_PV[place % len(self.added_PV)]
        low = self.constraints.at_least[slot] if self.constraints.at_least else None
        if low is not None:
            least_B1 = self.tokens_BL.index_select(1, self.position_1 + 1 - slot + low)
            scores_BV = scores_BV.masked_fill(self.constraints.below(least_B1), -torch.inf)
        if self.repeats is not None:
            begun_BS = self.tokens_BL.index_select(1, self.position_1 + 1 - slot + self.ids_V[:slot])
            scores_BV = scores_BV.masked_fill(self.repeats.used_up(slot, begun_BS), -torch.inf)
        return scores_BV

    def _choose(self, scores_BV: Tensor, slot: int) -> Tensor:
        """One token a row, (B, 1)."""
        return choose(scores_BV, self.sampling, self.uniforms_BL.index_select(1, self.position_1))

    def _fix(self, chosen_B1: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens with given ones, and the end behind the end, in their places; and where these are."""
        fixed_B1 = self.ended_B1
        if self.forced_BL is not None:
            forced_B1 = self.forced_BL.index_select(1, self.position_1)
            chosen_B1 = torch.where(forced_B1 < 0, chosen_B1, forced_B1)
            fixed_B1 = fixed_B1 | (forced_B1 >= 0)
        if self.sampling.may_end:
            chosen_B1 = chosen_B1.masked_fill(self.ended_B1, self.constraints.end)
        return chosen_B1, fixed_B1

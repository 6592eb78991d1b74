"""Generation of sequences: the state between two objects, the step from one to the next, and the buffers it fills.

The step (`ObjectStep`) is the same in torch and in an exported graph. In torch, `Generation` keeps the state in tensors
of fixed shapes, the position included: nothing waits for the device between two tokens, and the work for one object can
be compiled, or captured as a CUDA graph and replayed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from boxwright.models.layers.kv_cache import KVCache
from boxwright.models.sequence.no_repeat import NoRepeat
from boxwright.models.sequence.sampling import Sampling, choose, draws
from boxwright.models.sequence.token_constraints import TokenConstraints

BUCKET = 16  # objects: attention runs over the positions of whole buckets
Choose = Callable[[Tensor, int, Tensor | None], Tensor]  # logits (B, V), slot, draws (B, 1): tokens (B, 1)


class StepDecoder(Protocol):
    """A decoder that takes one token after the other."""

    def start(self, memory: Any, length: int, per_image: int = 1, /) -> KVCache:
        """An empty cache for `per_image` sequences of at most `length` tokens for each image.

        `memory` is the detector's `decoder_memory`.
        """
        ...

    def step(self, tokens_BL: Tensor, positions_L: Tensor, cache: KVCache, slot: int, /) -> Tensor:
        """Logits (B, V), float32, of what follows the last of the tokens, which are added to the cache in place.

        Args:
            tokens_BL: one token, or all at the beginning of the sequence.
            positions_L: of the tokens in the sequence; the start token is at 0.
            cache: its length bounds the positions.
            slot: which token of its object the next one is.
        """
        ...


class Generated(NamedTuple):
    """Sequences of N objects, and their probabilities.

    Attributes:
        tokens_BL: objects, then the end token; without the start token.
        log_probs_BL: of each token among the whole vocabulary, without constraints, temperature or bias. 0 for given
            tokens and behind the end.
        class_log_probs_BNK: of each class at the class slot of each object, likewise. -inf for given objects and behind
            the end.
        coordinates_BNC: the most probable coordinate at each other slot, whichever token was generated; only where the
            constraints ask for it.
    """

    tokens_BL: Tensor
    log_probs_BL: Tensor
    class_log_probs_BNK: Tensor
    coordinates_BNC: Tensor | None = None


class GenerationState(NamedTuple):
    """What the next object of every sequence depends on.

    Attributes:
        cache: the decoder's; steps add to it in place.
        position_1: of the last token, int64; the start token is at 0.
        last_B1: the last token.
        ended_B1: whether the sequence has ended.
    """

    cache: KVCache
    position_1: Tensor
    last_B1: Tensor
    ended_B1: Tensor


class GeneratedObject(NamedTuple):
    """One object of every sequence, S tokens; see `Generated`.

    Attributes:
        tokens_BS, log_probs_BS, class_log_probs_BK, coordinates_BC: a part of `Generated`.
        fixed_BS: tokens that were not chosen, as they were given or stand behind the end.
    """

    tokens_BS: Tensor
    log_probs_BS: Tensor
    class_log_probs_BK: Tensor
    coordinates_BC: Tensor | None
    fixed_BS: Tensor


class ObjectStep:
    """The step from one object of every sequence to the next, S tokens.

    Args:
        decoder: in evaluation mode.
        constraints: the tokens allowed at each position.
        sampling: how to choose.
        no_repeat: what has been generated, if objects must differ.
        choose: instead of `sampling`'s way.
    """

    def __init__(
        self,
        decoder: StepDecoder,
        constraints: TokenConstraints,
        sampling: Sampling,
        no_repeat: NoRepeat | None = None,
        choose: Choose | None = None,
    ):
        self.decoder, self.constraints, self.sampling, self.no_repeat = decoder, constraints, sampling, no_repeat
        self.choose = self._sample if choose is None else choose

    def __call__(
        self,
        state: GenerationState,
        added_SV: Tensor,
        draws_BS: Tensor | None = None,
        given_BS: Tensor | None = None,
    ) -> tuple[GenerationState, GeneratedObject]:
        """The state behind the object, and the object.

        Args:
            state: before it.
            added_SV: added to the logits; -inf forbids a token.
            draws_BS: uniform, from [0, 1), if tokens are drawn.
            given_BS: given tokens, -1 where they are to be generated; None where none is given.
        """
        cache, position_1, last_B1, ended_B1 = state
        tokens: list[Tensor] = []
        log_probs, coordinates, fixed, class_log_probs_BK = [], [], [], torch.empty(0)
        if self.no_repeat is not None:
            self.no_repeat.begin(position_1 // self.constraints.slots)
        for slot in range(self.constraints.slots):
            logits_BV = self.decoder.step(last_B1, position_1 + slot, cache, slot)
            chosen_B1 = self.choose(self._constrained(logits_BV + added_SV[slot], tokens), slot, _at(draws_BS, slot))
            last_B1, fixed_B1 = self._fix(chosen_B1, ended_B1, _at(given_BS, slot))
            if self.sampling.may_end:
                ended_B1 = ended_B1 | (last_B1 == self.constraints.end)
            total_B1 = logits_BV.logsumexp(-1, keepdim=True)
            if slot == self.constraints.class_slot:
                class_log_probs_BK = logits_BV.index_select(1, self.constraints.class_tokens_K) - total_B1
                class_log_probs_BK = class_log_probs_BK.masked_fill(fixed_B1 | ended_B1, -torch.inf)
            elif ids := self.constraints.coordinates:
                coordinates.append(logits_BV[:, ids.start : ids.stop].argmax(-1, keepdim=True) + ids.start)
            if self.no_repeat is not None:
                self.no_repeat.note(slot, last_B1)
            tokens.append(last_B1)
            log_probs.append((logits_BV.gather(1, last_B1) - total_B1).masked_fill(fixed_B1, 0))
            fixed.append(fixed_B1)
        coordinates_BC = torch.cat(coordinates, 1) if coordinates else None
        tokens_BS, log_probs_BS, fixed_BS = (torch.cat(part, 1) for part in (tokens, log_probs, fixed))
        state = GenerationState(cache, position_1 + self.constraints.slots, last_B1, ended_B1)
        return state, GeneratedObject(tokens_BS, log_probs_BS, class_log_probs_BK, coordinates_BC, fixed_BS)

    def _sample(self, logits_BV: Tensor, slot: int, draws_B1: Tensor | None) -> Tensor:
        return choose(logits_BV, self.sampling, draws_B1)

    def _constrained(self, logits_BV: Tensor, tokens: list[Tensor]) -> Tensor:
        """Logits with -inf for tokens that may not follow these, (B, 1) each, in the object."""
        slot = len(tokens)
        low = self.constraints.at_least[slot] if self.constraints.at_least else None
        if low is not None:
            logits_BV = logits_BV.masked_fill(self.constraints.below(tokens[low]), -torch.inf)
        if self.no_repeat is not None:
            logits_BV = logits_BV.masked_fill(self.no_repeat.used_up(slot, tokens), -torch.inf)
        return logits_BV

    def _fix(self, chosen_B1: Tensor, ended_B1: Tensor, given_B1: Tensor | None) -> tuple[Tensor, Tensor]:
        """Given tokens, and the end behind the end, in place of chosen ones; and where that was done."""
        fixed_B1 = ended_B1
        if given_B1 is not None:
            chosen_B1 = torch.where(given_B1 < 0, chosen_B1, given_B1)
            fixed_B1 = fixed_B1 | (given_B1 >= 0)
        if self.sampling.may_end:
            chosen_B1 = chosen_B1.masked_fill(ended_B1, self.constraints.end)
        return chosen_B1, fixed_B1


def _at(part_BS: Tensor | None, slot: int) -> Tensor | None:
    return None if part_BS is None else part_BS[:, slot : slot + 1]


class Generation:
    """Sequences while they are generated, in buffers that are changed in place.

    Args:
        decoder, memory, constraints, objects, sampling, given_BL: see `boxwright.models.sequence.generate.generate`.
        per_image: sequences for each image.
        choose: see `ObjectStep`.

    Attributes:
        first_object: number of given objects that stand in every sequence from the beginning.
        position_1, ended_B1: see `GenerationState`.
        tokens_BL, log_probs_BL, class_log_probs_BNK, coordinates_BNC: see `Generated`; L begins with the start token.
    """

    def __init__(
        self,
        decoder: StepDecoder,
        memory: Any,
        constraints: TokenConstraints,
        objects: int,
        sampling: Sampling,
        given_BL: Tensor | None = None,
        per_image: int = 1,
        choose: Choose | None = None,
    ):
        self.decoder, self.constraints, self.sampling = decoder, constraints, sampling
        slots, device = constraints.slots, constraints.allowed_PV.device
        self.length = objects * slots
        self.cache = decoder.start(memory, -(-self.length // 8) * 8, per_image)  # GPUs like lengths that 8 divides
        rows, classes = self.cache.rows, len(constraints.class_tokens_K)
        self.slots_S = torch.arange(slots, device=device)
        self.added_NSV = constraints.additions(sampling.end_bias).unflatten(0, (-1, slots))
        draws_BL = draws(sampling.seed, rows // per_image, self.length).repeat_interleave(per_image, 0)
        self.draws_BL = draws_BL.to(device) if sampling.draws else None
        self.first_object = 0
        self.position_1 = torch.zeros(1, dtype=torch.int64, device=device)
        self.ended_B1 = torch.zeros(rows, 1, dtype=torch.bool, device=device)
        self.tokens_BL = torch.full((rows, self.length + 1), constraints.end, device=device)
        self.tokens_BL[:, 0] = constraints.start
        self.log_probs_BL = torch.zeros(rows, self.length + 1, device=device)
        self.class_log_probs_BNK = torch.full((rows, objects, classes), -torch.inf, device=device)
        self.coordinates_BNC: Tensor | None = None
        if constraints.coordinates is not None:
            self.coordinates_BNC = torch.zeros(rows, objects, slots - 1, dtype=torch.int64, device=device)
        self.given_BL: Tensor | None = None
        if given_BL is not None:
            self._begin_with(given_BL.to(device))
        no_repeat = None if sampling.repeats else self._no_repeat(given_BL, objects)
        self.step = ObjectStep(decoder, constraints, sampling, no_repeat, choose)

    def result(self) -> Generated:
        """What has been generated so far."""
        return Generated(
            self.tokens_BL[:, 1:], self.log_probs_BL[:, 1:], self.class_log_probs_BNK, self.coordinates_BNC
        )

    def generate_object(self, number: int) -> GeneratedObject:
        """Generate the `number`-th object, which must be the next one, of every sequence."""
        positions_S, object_1 = self.position_1 + self.slots_S, self.position_1 // self.constraints.slots
        draws_BS, given_BS = (
            None if part_BL is None else part_BL.index_select(1, positions_S)
            for part_BL in (self.draws_BL, self.given_BL)
        )
        last_B1 = self.tokens_BL.index_select(1, self.position_1)
        state = GenerationState(self.cache.first(self.bucket(number)), self.position_1, last_B1, self.ended_B1)
        state, made = self.step(state, self.added_NSV[number % len(self.added_NSV)], draws_BS, given_BS)
        self.tokens_BL.index_copy_(1, positions_S + 1, made.tokens_BS)
        self.log_probs_BL.index_copy_(1, positions_S + 1, made.log_probs_BS)
        self.class_log_probs_BNK.index_copy_(1, object_1, made.class_log_probs_BK[:, None])
        if self.coordinates_BNC is not None and made.coordinates_BC is not None:
            self.coordinates_BNC.index_copy_(1, object_1, made.coordinates_BC[:, None])
        self.ended_B1.copy_(state.ended_B1)
        self.position_1.copy_(state.position_1)
        return made

    def bucket(self, number: int) -> int:
        """How many positions of the cache the `number`-th object attends to."""
        return -(-(number + 1) // BUCKET) * BUCKET * self.constraints.slots

    def _begin_with(self, given_BL: Tensor) -> None:
        """Objects given to every sequence are passed at once; the others replace what would be generated."""
        counts_B = (given_BL >= 0).sum(1)
        slots = self.constraints.slots
        self.first_object = int(counts_B.min()) // slots
        start = self.first_object * slots
        self.tokens_BL[:, 1 : start + 1] = given_BL[:, :start]
        self.position_1.fill_(start)
        if start:
            positions_L = torch.arange(start, device=given_BL.device)
            self.decoder.step(self.tokens_BL[:, :start], positions_L, self.cache, slots - 1)
        if int(counts_B.max()) > start:
            self.given_BL = torch.full_like(self.tokens_BL[:, 1:], -1)
            self.given_BL[:, : given_BL.shape[1]] = given_BL

    def _no_repeat(self, given_BL: Tensor | None, objects: int) -> NoRepeat:
        slots = self.constraints.slots
        given_BGS = None if given_BL is None else given_BL.to(self.tokens_BL.device).unflatten(1, (-1, slots))
        no_repeat = NoRepeat(self.constraints, self.tokens_BL[:, 1:].unflatten(1, (-1, slots)), given_BGS)
        assert objects <= no_repeat.objects, f"there are no {objects} different objects"
        return no_repeat

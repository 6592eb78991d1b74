"""The graphs of detectors that write sentences: before the first word, one object, and after the last word.

        canvas ── begin ──┬── what each layer sees of the image ───────────┐
                          └── empty caches, the start word ── one object ──┴── ... one object ── end ── boxes
                                                              └────────── a loop ────────────┘

An object is written by the same code as in torch (`boxwright.models.sequence.generation`), with two differences: caches
grow by what is written, where torch hides the places that are not yet; and the words of an object are all that is
looked at, as the loop collects them.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from boxwright.boxes import to_canvas
from boxwright.config import require
from boxwright.deployment.onnx.to_onnx import in_pixels, prepared
from boxwright.models.layers.kv_cache import KeysValues, KVCache
from boxwright.models.patchseq import PatchCache, PatchSeq, PatchTokens
from boxwright.models.replication import Replication
from boxwright.models.sequence.generation import Generated, Generation
from boxwright.models.sequence.no_repeat import NoRepeat
from boxwright.models.sequence.pointer import History
from boxwright.models.sequence.sampling import Sampling, uniform
from boxwright.models.sequence.sequence_detector import SequenceDetector
from boxwright.models.sequence.token_constraints import TokenConstraints
from boxwright.types import Predictions


@dataclass(frozen=True)
class GenerationSettings:
    """What a detector writes in, and how it chooses its words.

    Attributes:
        constraints: the tokens allowed at each position.
        objects: in a sentence.
        sampling: how words are chosen.
        class_PV: where a word stands that names a class, and only if the class is wanted.
    """

    constraints: TokenConstraints
    objects: int
    sampling: Sampling
    class_PV: Tensor | None = None


def language(detector: SequenceDetector) -> GenerationSettings:
    """As the detector's own `write` has it.

    Raises:
        UserError: for settings that are not in the graph.
    """
    sampling = detector.config.sampling
    sampling.check()
    only = "one file holds greedy writing and sampling"
    require(sampling.beams == 1, f"{only}, not beams={sampling.beams}; set beams=1.")
    require(sampling.repeats, f"{only}, and lets objects be repeated; set repeats=True.")
    grammar = detector.token_constraints()
    if not detector.accepts_given:
        return GenerationSettings(grammar, detector.config.max_objects, sampling)
    classless = detector.token_constraints(classes=[])
    class_PV = grammar.allowed_PV & ~classless.allowed_PV
    return GenerationSettings(grammar, detector.config.max_objects, sampling, class_PV)


class GivenBatch(NamedTuple):
    """Given objects as a batch has them."""

    boxes_BN4: Tensor
    labels_BN: Tensor
    valid_BN: Tensor


class GrowingKeysValues:
    """Keys and values that are what has been written, and nothing else."""

    def __init__(self, keys_BHLE: Tensor, values_BHLE: Tensor):
        self.keys_BHLE, self.values_BHLE = keys_BHLE, values_BHLE

    def write(self, positions_L: Tensor, new: KeysValues) -> None:
        """Behind what is there."""
        self.keys_BHLE = torch.cat([self.keys_BHLE, new.keys_BHLE], 2)
        self.values_BHLE = torch.cat([self.values_BHLE, new.values_BHLE], 2)

    def hidden(self, positions_L: Tensor) -> None:
        """Nothing is."""
        return


class SequenceStart(nn.Module):
    """From the canvas to what the first object needs.

    Args:
        detector: in evaluation mode.
    """

    def __init__(self, detector: SequenceDetector):
        super().__init__()
        self.detector: Any = prepared(detector)

    def forward(
        self, canvas_BCHW: Tensor, size_2: Tensor, original_2: Tensor | None = None,
        boxes_BG4: Tensor | None = None, labels_BG: Tensor | None = None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """`state`, then `seen`, flat: what changes from object to object, and what does not; then the given words
        (B, P), if there can be any.

        Args:
            canvas_BCHW, size_2, original_2: as of `boxwright.deployment.onnx.to_onnx.Core`.
            boxes_BG4: given objects, xyxy in pixels of the original.
            labels_BG: their classes; -1 where there is none, behind all that are.
        """
        rows = canvas_BCHW.shape[0]
        detector: Any = self.detector
        raw = detector(canvas_BCHW, size_2.expand(rows, -1))
        cache = detector.decoder.start(detector.decoder_memory(raw), 0)
        start_B1 = torch.full((rows, 1), language(self.detector).constraints.start)  # type: ignore[arg-type]
        ended_B1 = torch.zeros(rows, 1, dtype=torch.bool)
        said = list(cache.history) if isinstance(cache, PatchCache) else []
        state = (start_B1, ended_B1, *said, *_flat(cache.sentence))
        if original_2 is None or boxes_BG4 is None or labels_BG is None:
            return (*state, *seen(cache))
        given_BG4 = to_canvas(boxes_BG4, torch.tensor(canvas_BCHW.shape[-2:]), size_2, original_2)
        given = GivenBatch(given_BG4, labels_BG.clamp(min=0), labels_BG >= 0)
        return (*state, *seen(cache), detector.given_tokens(raw, given))


def seen(cache: KVCache) -> list[Tensor]:
    """What stays the same from object to object."""
    words = list(cache.words[:2]) if isinstance(cache, PatchCache) else []
    mask = [] if cache.seen_B11M is None else [cache.seen_B11M]
    return [*_flat(cache.image), *mask, *words]


def _flat(pairs: list[KeysValues]) -> list[Tensor]:
    return [tensor for pair in pairs for tensor in (pair.keys_BHLE, pair.values_BHLE)]


def _pairs(tensors: list[Tensor], kind: Any) -> list[Any]:
    return [kind(*tensors[n : n + 2]) for n in range(0, len(tensors), 2)]


class ObjectStep(nn.Module):
    """The next object of every sentence.

    Args:
        detector: in evaluation mode.
    """

    def __init__(self, detector: SequenceDetector):
        super().__init__()
        self.decoder, self.language = detector.decoder, language(detector)
        self.layers, self.points = len(detector.decoder.layers), isinstance(detector, PatchSeq)
        self.masked, self.asked = isinstance(detector, Replication), detector.accepts_given
        self.grid = detector.vocabulary().grid if isinstance(detector, PatchSeq) else (0, 0)
        self.coordinates = detector.config.coordinates if isinstance(detector, Replication) else None

    @property
    def carried(self) -> int:
        """Tensors that one object hands to the next: the last word, whether it has ended, history and caches."""
        return 2 + 2 * self.points + 2 * self.layers

    def forward(self, number: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Whether to go on; what the next object needs; the object's words (B, S), their log-probabilities (B, S) and
        those of the classes (B, K); for replications, the most probable coordinates (B, S - 1).

        Args:
            number: of the object, from 0.
            tensors: what `SequenceStart` gives; then the wanted classes (K,), if given
                and the seeds (B,), if tokens are drawn.
        """
        (last_B1, ended_B1, *state), rest = tensors[: self.carried], list(tensors[self.carried :])
        seed_B = rest.pop() if self.language.sampling.draws else None
        wanted_K = rest.pop() if self.asked else None
        given_BP = rest.pop() if self.asked else None
        history = History(*(part.clone() for part in state[:2])) if self.points else None
        cache = self._cache(state[2 * self.points :], rest, history)
        generation = ObjectGeneration(
            self.decoder, self.language, cache, number, seed_B, last_B1, ended_B1, given_BP, wanted_K
        )  # fmt: skip
        generation.generate_object(0)
        said = generation.result()
        goes_on = ~generation.ended_B1.all() if self.language.sampling.may_end else torch.ones((), dtype=torch.bool)
        told = list(cache.history) if isinstance(cache, PatchCache) else []
        next_state = (said.tokens_BL[:, -1:], generation.ended_B1, *told, *_flat(cache.sentence))
        words = (said.tokens_BL, said.log_probs_BL, said.class_log_probs_BNK[:, 0])
        return (goes_on, *next_state, *words, *self._coordinates(generation))

    def _cache(self, sentence: list[Tensor], rest: list[Tensor], history: History | None) -> KVCache:
        image, more = _pairs(rest[: 2 * self.layers], KeysValues), rest[2 * self.layers :]
        mask = more[0] if self.masked else None
        cache = KVCache(_pairs(sentence, GrowingKeysValues), image, mask)
        if history is None:
            return cache
        words = PatchTokens(more[0], more[1], self.grid)
        return PatchCache(cache.sentence, cache.image, mask, words=words, history=history)

    def _coordinates(self, generation: "ObjectGeneration") -> list[Tensor]:
        if self.coordinates is None:
            return []
        return [torch.stack([scores[:, : self.coordinates].argmax(-1) for scores in generation.seen_scores[:-1]], 1)]


class ObjectGeneration(Generation):
    """A generation of one object, behind those that the cache knows.

    Args:
        decoder, language, cache: of the sentences.
        number: of the object, from 0.
        seed_B: of the draws; None where nothing is drawn.
        last_B1: the word before.
        ended_B1: sentences that have ended.
        given_BP: words of given objects, -1 behind them; at least one.
        wanted_K: classes that may be said.
    """

    def __init__(
        self,
        decoder: Any,
        language: GenerationSettings,
        cache: KVCache,
        number: Tensor,
        seed_B: Tensor | None,
        last_B1: Tensor,
        ended_B1: Tensor,
        given_BP: Tensor | None = None,
        wanted_K: Tensor | None = None,
    ):
        grammar, rows, slots = language.constraints, last_B1.shape[0], language.constraints.slots
        self.decoder: Any = self
        self.full, self.seen_scores = decoder, []
        self.constraints, self.sampling, self.cache = grammar, language.sampling, cache
        self.first_1 = (number * slots)[None]
        self.ids_V = torch.arange(grammar.allowed_PV.shape[1])
        added_NSV = grammar.additions(language.sampling.end_bias).unflatten(0, (-1, slots))
        self.added_PV = added_NSV[0] if len(added_NSV) == 1 else added_NSV.index_select(0, number[None])[0]
        places_S = self.first_1 + torch.arange(slots)
        self.uniforms_BL = last_B1.new_zeros(rows, slots) if seed_B is None else uniform(seed_B[:, None], places_S)
        self.position_1 = torch.zeros(1, dtype=torch.int64)
        self.ended_B1 = ended_B1.clone()
        self.tokens_BL = torch.cat([last_B1, torch.full((rows, slots), grammar.end)], 1)
        self.log_probs_BL = torch.zeros(rows, slots + 1)
        self.class_log_probs_BNK = torch.full((rows, 1, len(grammar.class_tokens_K)), -torch.inf)
        self.forced_BL = None if given_BP is None else _at(given_BP, places_S)
        self.repeats: NoRepeat | None = None
        self.unwanted_PV: Tensor | None = None
        if wanted_K is not None and language.class_PV is not None:
            unwanted_V = torch.zeros_like(self.ids_V, dtype=torch.bool).index_put((grammar.class_tokens_K,), ~wanted_K)
            self.unwanted_PV = language.class_PV & unwanted_V

    def generate_object(self, number: int) -> None:
        """The only one."""
        for slot in range(self.constraints.slots):
            self._write(self.cache, slot, slot)

    def _grammatical(self, scores_BV: Tensor, place: int, slot: int) -> Tensor:
        scores_BV = super()._grammatical(scores_BV, place, slot)
        return scores_BV if self.unwanted_PV is None else scores_BV.masked_fill(self.unwanted_PV[slot], -torch.inf)

    def step(self, tokens_BL: Tensor, positions_L: Tensor, cache: KVCache) -> Tensor:
        """The decoder's, which counts from the beginning of the sentence; its scores are kept."""
        self.seen_scores.append(self.full.step(tokens_BL, positions_L + self.first_1, cache))
        return self.seen_scores[-1]


def _at(given_BP: Tensor, places_S: Tensor) -> Tensor:
    """The given words at these places, -1 where there are none."""
    last = given_BP.shape[1] - 1
    return given_BP.index_select(1, places_S.clamp(max=last)).masked_fill(places_S > last, -1)


class SequenceEnd(nn.Module):
    """From the words to boxes.

    Args:
        detector: in evaluation mode.
    """

    def __init__(self, detector: SequenceDetector):
        super().__init__()
        self.detector: Any = prepared(detector)

    def forward(
        self, size_2: Tensor, original_2: Tensor, tokens_NBS: Tensor, log_probs_NBS: Tensor, class_NBK: Tensor,
        more: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """Boxes (B, N, 4) in pixels of the original; scores and labels (B, N), best first. Of those that can be asked,
        which object of the sentence each of these is (B, N), and the words and their log-probabilities (B, N, S).

        Args:
            size_2, original_2: as of `boxwright.deployment.onnx.to_onnx.Core`.
            tokens_NBS, log_probs_NBS, class_NBK: what `ObjectStep` gives, one object after the other.
            more: of replications, the coordinates that it gives besides; of others, which classes are wanted, (K,).
        """
        tokens_BL, log_probs_BL = (part.transpose(0, 1).flatten(1) for part in (tokens_NBS, log_probs_NBS))
        said = Generated(tokens_BL, log_probs_BL, class_NBK.transpose(0, 1))
        found = self._read(said, size_2, more)
        boxes = in_pixels(found.best_first(), torch.tensor([self.detector.image_size] * 2), size_2, original_2)
        if not self.detector.accepts_given:
            return boxes
        order_BN = found.scores_BD.sort(dim=1, descending=True, stable=True).indices  # as `best_first`
        return (*boxes, order_BN, tokens_NBS.transpose(0, 1), log_probs_NBS.transpose(0, 1))

    def _read(self, said: Generated, size_2: Tensor, more: Tensor) -> Predictions:
        if self.detector.accepts_given:
            return self.detector.to_predictions(said, None, more)
        sizes_B2 = size_2.expand(said.tokens_BL.shape[0], -1)
        return self.detector.found(more.transpose(0, 1), said, sizes_B2=sizes_B2)

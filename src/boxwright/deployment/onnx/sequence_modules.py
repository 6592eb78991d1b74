"""The three modules of a sequence detector's graph: before the first object, from object to object, and the end.

        canvas ── start ──┬── keys and values of the image ─────────┐
                          └── empty caches, start token ── step ────┴── ... step ── end ── boxes
                                                           └────── a loop ──────┘

The step is that of torch (`boxwright.models.sequence.generation.ObjectStep`), but for its cache: here it grows by what
is generated, where torch hides the positions that are not yet filled.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from boxwright.boxes import to_canvas
from boxwright.config import require
from boxwright.deployment.onnx.loop_tensors import LoopTensor, LoopTensors
from boxwright.deployment.onnx.to_onnx import exportable_copy, in_pixels
from boxwright.models.layers.kv_cache import KeysValues, KVCache
from boxwright.models.sequence.generation import Generated, GenerationState, ObjectStep
from boxwright.models.sequence.sampling import Sampling, uniform
from boxwright.models.sequence.sequence_detector import SequenceDetector
from boxwright.models.sequence.token_constraints import TokenConstraints


@dataclass(frozen=True)
class GenerationSettings:
    """How a detector generates objects.

    Attributes:
        constraints: the tokens allowed at each position.
        objects: in a sequence.
        sampling: how tokens are chosen.
        class_PV: tokens that are allowed at a position because their class is wanted.
    """

    constraints: TokenConstraints
    objects: int
    sampling: Sampling
    class_PV: Tensor | None = None

    def added(self, wanted_K: Tensor | None = None) -> Tensor:
        """What is added to the logits of each object, (P, S, V): of the n-th from row n modulo P.

        Args:
            wanted_K: which classes may be generated; None for all.
        """
        added_PV = self.constraints.additions(self.sampling.end_bias)
        if wanted_K is not None and self.class_PV is not None:
            unwanted_V = torch.zeros(added_PV.shape[1], dtype=torch.bool)
            unwanted_V = unwanted_V.index_put((self.constraints.class_tokens_K,), ~wanted_K)
            added_PV = added_PV.masked_fill(self.class_PV & unwanted_V, -torch.inf)
        return added_PV.unflatten(0, (-1, self.constraints.slots))


def generation_settings(detector: SequenceDetector) -> GenerationSettings:
    """Those of its `generate`.

    Raises:
        UserError: for settings that are not in the graph.
    """
    sampling, objects = detector.config.sampling, detector.config.max_objects
    sampling.check()
    only = "one file holds greedy writing and sampling"
    require(sampling.beams == 1, f"{only}, not beams={sampling.beams}; set beams=1.")
    require(sampling.repeats, f"{only}, and lets objects be repeated; set repeats=True.")
    constraints = detector.token_constraints()
    if not detector.accepts_given:
        return GenerationSettings(constraints, objects, sampling)
    class_PV = constraints.allowed_PV & ~detector.token_constraints(classes=[]).allowed_PV
    return GenerationSettings(constraints, objects, sampling, class_PV)


class GivenBatch(NamedTuple):
    """Given objects, as in `boxwright.types.Batch`."""

    boxes_BN4: Tensor
    labels_BN: Tensor
    valid_BN: Tensor


class GrowingKeysValues:
    """Keys and values that grow by concatenation; stands in for `KeysValues` in a cache."""

    def __init__(self, keys_BHLE: Tensor, values_BHLE: Tensor):
        self.keys_BHLE, self.values_BHLE = keys_BHLE, values_BHLE

    def write(self, positions_L: Tensor, new: KeysValues) -> None:
        """Append."""
        self.keys_BHLE = torch.cat([self.keys_BHLE, new.keys_BHLE], 2)
        self.values_BHLE = torch.cat([self.values_BHLE, new.values_BHLE], 2)

    def causal_mask(self, positions_L: Tensor) -> None:
        """None: all that is there comes before."""
        return


class SequenceStart(nn.Module):
    """From the canvas to what the first object needs.

    Args:
        detector: in evaluation mode.
    """

    def __init__(self, detector: SequenceDetector):
        super().__init__()
        self.detector: Any = exportable_copy(detector)
        self.settings = generation_settings(detector)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The carried and the constant tensors of `begin`."""
        return LoopTensors(tuple(self.begin(*inputs)[1])).examples

    def begin(
        self, canvas_BCHW: Tensor, size_2: Tensor, original_2: Tensor | None = None,
        boxes_BG4: Tensor | None = None, labels_BG: Tensor | None = None, wanted_K: Tensor | None = None,
    ) -> tuple[KVCache, list[LoopTensor]]:  # fmt: skip
        """An empty cache, and all tensors that the loop carries or reads of the image.

        Args:
            canvas_BCHW, size_2, original_2: see `boxwright.deployment.onnx.to_onnx.Core`.
            boxes_BG4: given objects, xyxy in pixels of the original.
            labels_BG: their classes; -1 for rows without an object, behind all that have one.
            wanted_K: which classes may be generated.
        """
        rows = canvas_BCHW.shape[0]
        outputs = self.detector(canvas_BCHW, size_2.expand(rows, -1))
        cache = self.detector.decoder.start(self.detector.decoder_memory(outputs), 0)
        start_B1 = torch.full((rows, 1), self.detector.token_constraints().start)
        ended_B1 = torch.zeros(rows, 1, dtype=torch.bool)
        tensors = [
            LoopTensor("last_token", start_B1, "B1", "carried"),
            LoopTensor("ended", ended_B1, "B1", "carried"),
            LoopTensor("added", self.settings.added(wanted_K), "1SV", "constant"),
            *(
                LoopTensor(part.name, part.tensor, part.axes, "carried" if part.changes else "constant")
                for part in cache.tensors()
            ),
        ]
        if original_2 is not None and boxes_BG4 is not None and labels_BG is not None:
            given_BG4 = to_canvas(boxes_BG4, torch.tensor(canvas_BCHW.shape[-2:]), size_2, original_2)
            given = GivenBatch(given_BG4, labels_BG.clamp(min=0), labels_BG >= 0)
            tensors.append(LoopTensor("given_tokens", self.detector.given_tokens(outputs, given), "BL", "constant"))
        return cache, tensors


class SequenceStep(nn.Module):
    """The next object of every sequence.

    Args:
        detector: in evaluation mode.
        begun: what `SequenceStart.begin` gives for an example.

    Attributes:
        tensors: all tensors of the loop.
    """

    def __init__(self, detector: SequenceDetector, begun: tuple[KVCache, list[LoopTensor]]):
        super().__init__()
        self.decoder, self.settings = detector.decoder, generation_settings(detector)
        constraints, sampling = self.settings.constraints, self.settings.sampling
        self.step = ObjectStep(self.decoder, constraints, sampling)
        self.cache, start = begun
        self.tensors = LoopTensors((*start, *self._inputs(), *self._collected()))

    def forward(self, number: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Whether to go on; the carried tensors for the next object; and the collected ones of this one.

        Args:
            number: of the object, from 0.
            tensors: the carried and the constant ones, and the inputs.
        """
        named = self.tensors.only("carried", "constant", "input").unpack(tensors)
        cache = self.cache.with_tensors(named)
        growing: list[Any] = [GrowingKeysValues(*kv) for kv in cache.sequence]
        cache = replace(cache, sequence=growing)
        before_1 = (number * self.settings.constraints.slots)[None]
        positions_S = before_1 + torch.arange(self.settings.constraints.slots)
        state = GenerationState(cache, before_1, named["last_token"], named["ended"].clone())
        draws_BS = uniform(named["seed"][:, None], positions_S) if "seed" in named else None
        given_BS = _at(named["given_tokens"], positions_S) if "given_tokens" in named else None
        added_PSV = named["added"]
        added_SV = added_PSV[0] if len(added_PSV) == 1 else added_PSV.index_select(0, number[None] % len(added_PSV))[0]
        state, made = self.step(state, added_SV, draws_BS, given_BS)
        goes_on = ~state.ended_B1.all() if self.settings.sampling.may_end else torch.ones((), dtype=torch.bool)
        after = {part.name: part.tensor for part in cache.tensors()}
        after |= {"last_token": state.last_B1, "ended": state.ended_B1}
        after |= {"tokens": made.tokens_BS, "log_probs": made.log_probs_BS, "class_log_probs": made.class_log_probs_BK}
        if made.coordinates_BC is not None:
            after["coordinates"] = made.coordinates_BC
        return (goes_on, *self.tensors.only("carried").pack(after), *self.tensors.only("collected").pack(after))

    def _inputs(self) -> list[LoopTensor]:
        """What the file is given beside the image, the given objects and the wanted classes."""
        return [LoopTensor("seed", torch.tensor([3, 4]), "B", "input")] if self.settings.sampling.draws else []

    def _collected(self) -> list[LoopTensor]:
        """The parts of an object, of two images."""
        constraints = self.settings.constraints
        slots, classes = constraints.slots, len(constraints.class_tokens_K)
        ids_BC = torch.zeros(2, slots - 1, dtype=torch.int64)
        coordinates = [] if constraints.coordinates is None else [LoopTensor("coordinates", ids_BC, "BC", "collected")]
        return [
            LoopTensor("tokens", torch.zeros(2, slots, dtype=torch.int64), "BS", "collected"),
            LoopTensor("log_probs", torch.zeros(2, slots), "BS", "collected"),
            LoopTensor("class_log_probs", torch.zeros(2, classes), "BK", "collected"),
            *coordinates,
        ]


def _at(given_BL: Tensor, positions_S: Tensor) -> Tensor:
    """The given tokens at these positions, -1 where there are none."""
    last = given_BL.shape[1] - 1
    return given_BL.index_select(1, positions_S.clamp(max=last)).masked_fill(positions_S > last, -1)


class SequenceEnd(nn.Module):
    """From the tokens to boxes.

    Args:
        detector: in evaluation mode.
        tensors: of the loop.

    Attributes:
        tensors: what it reads: the collected ones, stacked, and the wanted classes.
    """

    def __init__(self, detector: SequenceDetector, tensors: LoopTensors):
        super().__init__()
        self.detector: Any = exportable_copy(detector)
        every_K = torch.ones(len(detector.names), dtype=torch.bool)
        wanted = [LoopTensor("wanted_classes", every_K, "K", "input")] if detector.accepts_given else []
        self.tensors = LoopTensors((*(entry.stacked() for entry in tensors.only("collected").entries), *wanted))

    def forward(self, size_2: Tensor, original_2: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Boxes (B, N, 4) in pixels of the original; scores and labels (B, N), best first. For a detector that accepts
        given objects, also which object of the sequence each of these is (B, N), and tokens and their log-probabilities
        (B, N, S).

        Args:
            size_2, original_2: see `boxwright.deployment.onnx.to_onnx.Core`.
            tensors: those of `tensors`.
        """
        named = self.tensors.unpack(tensors)
        tokens_BNS, log_probs_BNS, classes_BNK = (
            named[name].transpose(0, 1) for name in ("tokens", "log_probs", "class_log_probs")
        )
        coordinates_BNC = named["coordinates"].transpose(0, 1) if "coordinates" in named else None
        generated = Generated(tokens_BNS.flatten(1), log_probs_BNS.flatten(1), classes_BNK, coordinates_BNC)
        sizes_B2 = size_2.expand(tokens_BNS.shape[0], -1)
        predictions = self.detector.to_predictions(generated, None, named.get("wanted_classes"), sizes_B2)
        side_2 = torch.tensor([self.detector.image_size] * 2)
        boxes = in_pixels(predictions.best_first(), side_2, size_2, original_2)
        if not self.detector.accepts_given:
            return boxes
        order_BN = predictions.scores_BD.sort(dim=1, descending=True, stable=True).indices  # as `best_first`
        return (*boxes, order_BN, tokens_BNS, log_probs_BNS)

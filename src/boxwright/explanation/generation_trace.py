"""How a sequence was generated: the alternatives to each token, and the decoder's attention when it was chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from boxwright.explanation import patch_corners
from boxwright.explanation.copied_proposals import CopyTrace, proposal_maps, trace_copies
from boxwright.explanation.patch_corners import PatchCorners
from boxwright.models.sequence.decoder import SequenceDecoder
from boxwright.models.sequence.patch_vocabulary import PatchVocabulary
from boxwright.models.sequence.proposal_decoder import ProposalDecoder
from boxwright.models.sequence.sequence_detector import SequenceDetector
from boxwright.models.sequence.token_constraints import TokenConstraints
from boxwright.models.sequence.vocabulary import NOISE, PAD, PROMPT
from boxwright.types import Batch, Detections

SLOTS = ("y1", "x1", "y2", "x2", "class")


@dataclass
class GenerationTrace:
    """The sequence of one image: N objects of 5 tokens in the order of generation; V token ids, R coordinates.

    Attributes:
        tokens_N5: the generated ids.
        probabilities_N5V: of every id at each position, given the tokens before it; sums to 1.
        allowed_N5V: whether the token constraints allow the id at this position, given the tokens before it.
        coordinates_N4R: the probability of every coordinate among the allowed ones, at y1, x1, y2 and x2; sums to 1.
            R is 0 where tokens are patches.
        corners_N4: the generated y1, x1, y2, x2, in [0, 1] of the canvas.
        attention_N5HW: cross-attention to each cell of the canvas when the token was chosen, mean over layers and
            heads; sums to 1 (to less where a class token takes some). A decoder that copies takes one step for an
            object, and attends to proposals: see `boxwright.explanation.copied_proposals.proposal_maps`.
        valid_2: height and width of the valid area, in (0, 1] of the canvas.
        end: the probability of the token that ended the sequence; None if it has its full length.
        found: the objects, in pixels of the original image, in the order of generation.
        token_names: how each id is shown.
        copied: the proposals that the objects were copied from; None for a decoder that does not copy.
        patches: where the corners may lie, where tokens are patches; else None.
    """

    tokens_N5: np.ndarray
    probabilities_N5V: np.ndarray
    allowed_N5V: np.ndarray
    coordinates_N4R: np.ndarray
    corners_N4: np.ndarray
    attention_N5HW: np.ndarray
    valid_2: tuple[float, float]
    end: float | None
    found: Detections
    token_names: list[str]
    copied: CopyTrace | None = None
    patches: PatchCorners | None = None

    def __len__(self) -> int:
        return len(self.tokens_N5)

    @property
    def slots(self) -> tuple[str, ...]:
        """What each token of an object is called."""
        return SLOTS if self.patches is None else patch_corners.SLOTS

    def token_probabilities(self) -> np.ndarray:
        """The probability of each generated token, (N, 5)."""
        return np.take_along_axis(self.probabilities_N5V, self.tokens_N5[..., None], -1)[..., 0]

    @property
    def log_likelihood(self) -> float:
        """The natural logarithm of the sequence's probability, with its end."""
        probabilities = np.append(self.token_probabilities(), 1.0 if self.end is None else self.end)
        return float(np.log(probabilities.clip(1e-30)).sum())

    def box(self, position: int) -> tuple[float, float, float, float]:
        """The generated box, xyxy in fractions of the image."""
        y1, x1, y2, x2 = (self.corners_N4[position] / np.array(self.valid_2 * 2)).tolist()
        return x1, y1, x2, y2

    def best(self, most: int) -> list[int]:
        """The positions of up to `most` objects, highest score first."""
        return np.argsort(-self.found.scores_N, kind="stable")[:most].tolist()

    def most_probable(self, position: int, slot: int, most: int) -> list[int]:
        """The most probable ids at a slot of an object."""
        return np.argsort(-self.probabilities_N5V[position, slot], kind="stable")[:most].tolist()


@torch.no_grad()
def trace_generation(detector: SequenceDetector, batch: Batch, objects: int | None = None) -> list[GenerationTrace]:
    """Generate sequences with the detector's settings, then read each one again in a single pass that is recorded.

    Args:
        detector: explained as a sequence, in evaluation mode, on the device of the batch. Its objects are four tokens
            for a box, then one for a class.
        batch: images; their boxes are not used.
        objects: the most to generate, by default all that a sequence holds.
    """
    outputs = detector(batch.images_BCHW, batch.sizes_B2)
    memory, decoder = detector.decoder_memory(outputs), detector.decoder
    generated = detector.generate(outputs, objects)
    found = detector.to_predictions(generated, outputs).to_detections(batch, detector.names, threshold=-1)
    again = read_again(decoder, F.pad(generated.tokens_BL[:, :-1], (1, 0), value=PROMPT), memory)
    copied: list[CopyTrace] | list[None] = [None] * len(batch)
    if isinstance(decoder, ProposalDecoder):
        copied = trace_copies(decoder, generated.tokens_BL, again.states_BLE, memory)
        attention_BN1HW = proposal_maps(again.attention_BLM, memory.boxes_BC4)[:, :, None]
        attention_BN5HW = attention_BN1HW.expand(-1, -1, len(SLOTS), -1, -1)
    else:
        attention_BN5HW = _cell_maps(again.attention_BLM)
    valid_B2 = batch.sizes_B2 / torch.tensor(batch.images_BCHW.shape[-2:], device=batch.sizes_B2.device)
    names = token_names(detector, outputs)
    return [
        _trace(detector, outputs, tokens_L, logits_LV, attention_N5HW, valid_2, objects_found, names, copies)
        for tokens_L, logits_LV, attention_N5HW, valid_2, objects_found, copies in zip(
            generated.tokens_BL, again.logits_BLV, attention_BN5HW, valid_B2.tolist(), found, copied, strict=True
        )
    ]


def _cell_maps(attention_BLM: Tensor) -> Tensor:
    """Attention to the cells of a square canvas; what comes before them, such as a class token, is left out."""
    side = math.isqrt(attention_BLM.shape[-1])
    return attention_BLM[..., -side * side :].unflatten(-1, (side, side)).unflatten(1, (-1, len(SLOTS)))


def _trace(
    detector: SequenceDetector,
    outputs: Any,
    tokens_L: Tensor,
    logits_LV: Tensor,
    attention_N5HW: Tensor,
    valid_2: list[float],
    found: Detections,
    names: list[str],
    copied: CopyTrace | None,
) -> GenerationTrace:
    """The trace of one image, up to the object in which the sequence ends."""
    vocabulary = detector.vocabulary(outputs)
    by_patch = isinstance(vocabulary, PatchVocabulary)
    tokens_N5, logits_N5V = tokens_L.unflatten(0, (-1, len(SLOTS))), logits_LV.unflatten(0, (-1, len(SLOTS)))
    bins = 0 if by_patch else vocabulary.bins
    coordinates = slice(vocabulary.first_coordinate, vocabulary.first_coordinate + bins)
    ends = (tokens_L == PAD).nonzero().flatten().tolist() if detector.config.sampling.may_end else []
    n = ends[0] // len(SLOTS) if ends else len(tokens_N5)
    allowed_N5V = _allowed(detector.token_constraints(outputs), tokens_N5[:n])
    allowed_N4R = allowed_N5V[:, :4, coordinates]
    coordinates_N4R = logits_N5V[:n, :4, coordinates].masked_fill(~allowed_N4R, -torch.inf).softmax(-1)
    return GenerationTrace(
        tokens_N5=tokens_N5[:n].cpu().numpy(),
        probabilities_N5V=logits_N5V[:n].softmax(-1).cpu().numpy(),
        allowed_N5V=allowed_N5V.cpu().numpy(),
        coordinates_N4R=coordinates_N4R.cpu().numpy(),
        corners_N4=vocabulary.boxes(tokens_N5[:n, :4])[:, [1, 0, 3, 2]].cpu().numpy(),
        attention_N5HW=attention_N5HW[:n].float().cpu().numpy(),
        valid_2=(valid_2[0], valid_2[1]),
        end=float(logits_LV[ends[0]].softmax(-1)[PAD]) if ends else None,
        found=Detections(found.boxes_N4[:n], found.scores_N[:n], found.labels_N[:n], found.names),
        token_names=names,
        copied=None if copied is None else copied.first(n),
        patches=patch_corners.patch_corners(vocabulary, logits_N5V[:n], allowed_N5V) if by_patch else None,
    )


def _allowed(constraints: TokenConstraints, tokens_N5: Tensor) -> Tensor:
    """The ids allowed at each position, (N, 5, V), the end excluded."""
    allowed_N5V = constraints.allowed_PV.repeat(len(tokens_N5), 1, 1)
    for slot, low in enumerate(constraints.at_least):
        if low is not None:
            allowed_N5V[:, slot] &= ~constraints.below(tokens_N5[:, low, None])
    return allowed_N5V


class ReadAgain(NamedTuple):
    """What a decoder computes for whole sequences; L counts tokens, or objects where it takes one step for each.

    Attributes:
        logits_BLV: after each token.
        attention_BLM: to the image's cells, or its proposals, mean over layers and heads.
        states_BLE: after the last layer and its norm.
    """

    logits_BLV: Tensor
    attention_BLM: Tensor
    states_BLE: Tensor


def read_again(decoder: SequenceDecoder | ProposalDecoder, inputs_BL: Tensor, memory: Any) -> ReadAgain:
    """Pass whole sequences, which begin with the start token, through a decoder."""
    weights: list[Tensor] = []
    states: list[Tensor] = []
    hooks = [
        layer.cross_attention.register_forward_pre_hook(  # type: ignore[union-attr,operator]
            lambda module, args: weights.append(module.weights(*args).mean(1))
        )
        for layer in decoder.layers
    ]
    hooks.append(decoder.norm.register_forward_hook(lambda module, args, state_BLE: states.append(state_BLE)))
    try:
        logits_BLV = decoder(inputs_BL, memory)
    finally:
        for hook in hooks:
            hook.remove()
    return ReadAgain(logits_BLV, torch.stack(weights).mean(0), states[-1])


def token_names(detector: SequenceDetector, outputs: Any = None) -> list[str]:
    """How each id of the vocabulary is shown: coordinates as numbers, patches by row and column, classes by name.

    Args:
        detector: the detector.
        outputs: of its `forward`, for the canvas of the vocabulary; by default its own.
    """
    vocabulary = detector.vocabulary(outputs)
    names = [f"#{token}" for token in range(vocabulary.size)]
    names[PAD], names[PROMPT], names[NOISE] = "end", ">", "noise"
    if isinstance(vocabulary, PatchVocabulary):
        coordinates = patch_corners.coordinate_names(vocabulary)
    else:
        coordinates = {vocabulary.first_coordinate + n: str(n) for n in range(vocabulary.bins)}
    for token, name in coordinates.items():
        names[token] = name
    for label, name in enumerate(detector.names):
        names[int(vocabulary.class_tokens(torch.tensor(label)))] = name
    return names

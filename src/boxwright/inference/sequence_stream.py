"""Objects of a sequence detector while they are generated, in pixels of the image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from boxwright.models.sequence.generate import continue_generation
from boxwright.models.sequence.generation import Generated, Generation
from boxwright.models.sequence.sequence_detector import SequenceDetector
from boxwright.models.sequence.vocabulary import NOISE
from boxwright.runtime.sequence_reader import ObjectTokens, TokenFormat
from boxwright.runtime.sequence_types import Box
from boxwright.types import Batch, Predictions


def token_format(detector: SequenceDetector) -> TokenFormat:
    """What the tokens of a detector stand for; the same for images of every size."""
    vocabulary, sampling = detector.vocabulary(), detector.config.sampling
    tokens_K = vocabulary.class_tokens(torch.arange(len(detector.names))).tolist()
    classes = dict(zip(tokens_K, detector.names, strict=True)) | {NOISE: "noise"}
    end = detector.token_constraints().end if sampling.may_end else None
    return TokenFormat(detector.slots, classes, end, detector.config.max_objects)


@torch.inference_mode()
def generate_objects(
    detector: SequenceDetector, batch: Batch, given: int, classes: Sequence[int] | None = None
) -> Iterator[ObjectTokens]:
    """The objects of one image, each as soon as it is generated.

    With beam search, which may still change earlier objects, all come at the end.

    Args:
        detector: in evaluation mode.
        batch: of one image, with its given objects.
        given: how many these are; they come first.
        classes: positions of the classes that may be generated, by default all.
    """
    outputs = detector(batch.images_BCHW, batch.sizes_B2)
    generation = detector.begin_generation(outputs, None, batch, classes)
    slots = len(detector.slots)
    for number in chain(range(given), _settled(generation)):
        tokens = _one_object(generation.result(), number, slots)
        tokens_S = tokens.tokens_BL[0]
        found = detector.to_predictions(tokens, outputs, classes).to_detections(batch, detector.names, threshold=-1)[0]
        yield ObjectTokens(
            tokens_S=tokens_S.cpu().numpy(),
            log_probs_S=tokens.log_probs_BL[0].cpu().numpy(),
            box=_box(found.boxes_N4[0]),
            label=int(found.labels_N[0]),
            score=float(found.scores_N[0]),
            spelled=_spelled(detector, tokens_S, outputs, batch),
            coarse=_spelled(detector, detector.coarse(tokens_S, outputs), outputs, batch),
        )


def _settled(generation: Generation) -> Iterator[int]:
    """Numbers of the objects that won't change any more, as they come."""
    numbers = continue_generation(generation)
    return numbers if generation.sampling.beams == 1 else iter(list(numbers))


def _one_object(generated: Generated, number: int, slots: int) -> Generated:
    """One object as a sequence of its own."""
    tokens = slice(number * slots, (number + 1) * slots)
    return Generated(
        generated.tokens_BL[:, tokens], generated.log_probs_BL[:, tokens],
        generated.class_log_probs_BNK[:, number : number + 1],
    )  # fmt: skip


def _spelled(detector: SequenceDetector, tokens_S: Tensor, outputs: Any, batch: Batch) -> Box:
    """The box that tokens spell, in pixels of the image; its corners may be reversed."""
    corners_14 = tokens_S[[slot != "class" for slot in detector.slots]][None]
    boxes_114 = detector.vocabulary(outputs).boxes(corners_14)[None]
    one_11 = torch.ones(1, 1, device=boxes_114.device)
    found = Predictions(boxes_114, one_11, one_11.long()).to_detections(batch, detector.names)[0]
    return _box(found.boxes_N4[0])


def _box(box_4: Any) -> Box:
    x1, y1, x2, y2 = box_4.tolist()
    return x1, y1, x2, y2

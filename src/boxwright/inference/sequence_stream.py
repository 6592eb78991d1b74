"""Sentences while they are written, in the words of a reader: pixels of the image, names of classes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from boxwright.models.sequence.generate import write_on
from boxwright.models.sequence.generation import Generated, Generation
from boxwright.models.sequence.sequence_detector import SequenceDetector
from boxwright.models.sequence.vocabulary import NOISE
from boxwright.runtime.sequence_types import GivenObjects, StreamObject, StreamToken, check_known
from boxwright.types import Batch, Predictions

SIDES = ("x1", "y1", "x2", "y2")


@torch.inference_mode()
def watch(
    detector: SequenceDetector, batch: Batch, known: GivenObjects, classes: Sequence[int] | None = None
) -> Iterator[StreamToken | StreamObject]:
    """Write the sentence of one image; the words of an object are told once all of them stand.

    With beams, which may still change what stands, everything is told at the end.

    Args:
        detector: in evaluation mode.
        batch: of one image, with the known objects.
        known: the same, as the caller gave them.
        classes: positions of those that may be said, by default all.
    """
    raw = detector(batch.images_BCHW, batch.sizes_B2)
    draft = detector.draft(raw, None, batch, classes)
    reader = _Reader(detector, raw, batch, classes)
    height, width = batch.originals_B2[0].tolist()
    for number, (label, box) in enumerate(check_known(known, (width, height), detector.names)):
        yield from reader.words(draft.generated(), number, given=True)
        yield StreamObject(number, box, label, detector.names[label], 1.0, given=True)
    for number in _settled(draft):
        yield from reader.object(draft, number)


def _settled(draft: Generation) -> Iterator[int]:
    """The objects that won't change any more, as they come."""
    return write_on(draft) if draft.sampling.beams == 1 else iter(list(write_on(draft)))


class _Reader:
    """Reads off what is written of one image.

    Args:
        as of `watch`; `raw` is what the decoder looks at.
    """

    def __init__(self, detector: SequenceDetector, raw: Any, batch: Batch, classes: Sequence[int] | None):
        self.detector, self.raw, self.batch, self.classes = detector, raw, batch, classes
        self.slots, self.vocabulary = detector.slots, detector.words(raw)
        tokens_K = self.vocabulary.class_tokens(torch.arange(len(detector.names))).tolist()
        self.names = dict(zip(tokens_K, detector.names, strict=True)) | {NOISE: "noise"}

    def object(self, draft: Generation, number: int) -> Iterator[StreamToken | StreamObject]:
        """Its words, and itself unless the sentence ends in it."""
        said = draft.generated()
        words = list(self.words(said, number, end=draft.grammar.end if draft.sampling.may_end else None))
        yield from words
        if words[-1].slot != "end":
            yield self.written(said, number)

    def words(self, said: Generated, number: int, given: bool = False, end: int | None = None) -> Iterator[StreamToken]:
        """Of an object, up to the word that ends the sentence, if there may be one."""
        part = self._part(said, number)
        tokens_W = part.tokens_BL[0]
        rough, exact = self._sides(self.detector.roughly(tokens_W, self.raw)), self._sides(tokens_W)
        for place, (token, log_prob) in enumerate(zip(tokens_W.tolist(), part.log_probs_BL[0].tolist(), strict=True)):
            probability = min(1.0, math.exp(log_prob))
            if token == end:
                yield StreamToken(number, "end", "end", probability)
                return
            slot = self.slots[place]
            sides = rough if slot in self.slots[place + 1 :] else exact
            text = (
                self.names.get(token, f"#{token}")
                if slot == "class"
                else " ".join(sides[side] for side in slot.split())
            )
            yield StreamToken(number, slot, text, probability, given)

    def written(self, said: Generated, number: int) -> StreamObject:
        """An object of which all words stand."""
        read = self.detector.read(self._part(said, number), self.raw, self.classes)
        found = read.to_detections(self.batch, self.detector.names, threshold=-1)[0]
        label = int(found.labels_N[0])
        x1, y1, x2, y2 = found.boxes_N4[0].tolist()
        return StreamObject(number, (x1, y1, x2, y2), label, found.names[label], float(found.scores_N[0]))

    def _part(self, said: Generated, number: int) -> Generated:
        """One object as a sentence of its own."""
        first, behind = number * len(self.slots), (number + 1) * len(self.slots)
        return Generated(
            said.tokens_BL[:, first:behind], said.log_probs_BL[:, first:behind],
            said.class_log_probs_BNK[:, number : number + 1],
        )  # fmt: skip

    def _sides(self, tokens_W: Tensor) -> dict[str, str]:
        """Each side of the box in whole pixels of the image, as the words say it, which may be the wrong way round."""
        coordinates_14 = tokens_W[[slot != "class" for slot in self.slots]][None]
        boxes_114 = self.vocabulary.boxes(coordinates_14)[None]
        one_11 = torch.ones(1, 1, device=boxes_114.device)
        found = Predictions(boxes_114, one_11, one_11.long()).to_detections(self.batch, self.detector.names)[0]
        return dict(zip(SIDES, (str(round(side)) for side in found.boxes_N4[0].tolist()), strict=True))

"""The sentence of an exported detector that writes: what its words say, read off the arrays that the file gives."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from boxwright.config import require
from boxwright.runtime.sequence_types import Box, StreamObject, StreamToken

SIDES = ("x1", "y1", "x2", "y2")


@dataclass(frozen=True)
class TokenReader:
    """How to read the words of a file.

    Attributes:
        slots: what each word of an object says, as in `StreamToken.slot`.
        classes: the name of each class's id, and of that for noise.
        end: the id that ends a sentence; None if none does.
        objects: in a sentence, given ones included.
    """

    slots: tuple[str, ...]
    classes: dict[int, str]
    end: int | None
    objects: int

    @classmethod
    def from_json(cls, text: str) -> TokenReader:
        """What `boxwright export` wrote into the file.

        Raises:
            KeyError, TypeError, ValueError: for anything else.
        """
        said = json.loads(text)
        classes = {int(token): str(name) for token, name in said["classes"].items()}
        return cls(tuple(said["slots"]), classes, said["end"], int(said["objects"]))


class Sentence(NamedTuple):
    """What a file says of one image with N objects of S words; the first three best first.

    Attributes:
        boxes_N4, scores_N, labels_N: the objects, xyxy in pixels of the image.
        order_N: the number of each of these in the sentence, from 0.
        words_NS, log_probs_NS: of each object of the sentence.
    """

    boxes_N4: np.ndarray
    scores_N: np.ndarray
    labels_N: np.ndarray
    order_N: np.ndarray
    words_NS: np.ndarray
    log_probs_NS: np.ndarray


def given_arrays(known: Sequence[Sequence[tuple[int, Box]]], objects: int) -> dict[str, np.ndarray]:
    """Given objects as a file takes them, a list for each image; behind the last of an image, some that are not there.

    Raises:
        UserError: for so many in one image that nothing could follow.
    """
    most = max(map(len, known))
    require(most < objects, f"{most} objects are given, and a sentence holds {objects}, given ones included.")
    boxes_BG4 = np.zeros((len(known), max(1, most), 4), np.float32)
    labels_BG = np.full(boxes_BG4.shape[:2], -1, np.int64)
    for row, own in enumerate(known):
        for place, (label, box) in enumerate(own):
            boxes_BG4[row, place], labels_BG[row, place] = box, label
    return {"given_boxes": boxes_BG4, "given_labels": labels_BG}


def wanted_array(classes: Sequence[int] | None, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Which classes a file is to write, as it takes them; nothing for all."""
    return {} if classes is None else {"wanted_classes": np.isin(np.arange(len(names)), list(classes))}


def told(
    said: Sentence, language: TokenReader, known: Sequence[tuple[int, Box]], names: Sequence[str]
) -> Iterator[StreamToken | StreamObject]:
    """The words of each object, then the object, up to the end of the sentence.

    Args:
        said: by the file, boxes in pixels of the picture.
        language: of the file.
        known: the given objects, with which the sentence begins.
        names: the classes.
    """
    place_of = np.argsort(said.order_N)
    for number in range(len(said.words_NS)):
        given, place = number < len(known), place_of[number]
        label, box = known[number] if given else (int(said.labels_N[place]), tuple(said.boxes_N4[place].tolist()))
        words = list(_words(said, language, number, box, given))
        yield from words
        if words[-1].slot == "end":
            return
        yield StreamObject(number, box, label, names[label], 1.0 if given else float(said.scores_N[place]), given)


def _words(said: Sentence, language: TokenReader, number: int, box: Box, given: bool) -> Iterator[StreamToken]:
    """Of an object, up to the word that ends the sentence."""
    sides = dict(zip(SIDES, (str(round(side)) for side in box), strict=True))
    spoken = zip(said.words_NS[number].tolist(), said.log_probs_NS[number].tolist(), language.slots, strict=True)
    for token, log_prob, slot in spoken:
        probability = min(1.0, math.exp(log_prob))
        if token == language.end:
            yield StreamToken(number, "end", "end", probability)
            return
        is_class = slot == "class"
        text = language.classes.get(token, f"#{token}") if is_class else " ".join(sides[side] for side in slot.split())
        yield StreamToken(number, slot, text, probability, given)

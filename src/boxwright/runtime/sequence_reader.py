"""Reads the tokens of sequence detectors: their texts, and the objects. Torch and exported files share it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np

from boxwright.runtime.sequence_types import Box, CheckedObjects, StreamObject, StreamToken

SIDES = ("x1", "y1", "x2", "y2")


@dataclass(frozen=True)
class TokenFormat:
    """What the tokens of a detector stand for.

    Attributes:
        slots: what each token of an object stands for, as in `StreamToken.slot`.
        classes: the text of each class token, and of the one for noise.
        end: the token that ends a sequence; None if none does.
        objects: the most objects in a sequence, given ones included.
    """

    slots: tuple[str, ...]
    classes: dict[int, str]
    end: int | None
    objects: int

    @classmethod
    def from_json(cls, text: str) -> TokenFormat:
        """Read what `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: for anything else.
        """
        stored = json.loads(text)
        classes = {int(token): str(name) for token, name in stored["classes"].items()}
        return cls(tuple(stored["slots"]), classes, stored["end"], int(stored["objects"]))

    def to_json(self) -> str:
        """As it is stored in an exported file."""
        return json.dumps(asdict(self))


class ObjectTokens(NamedTuple):
    """One object of a sequence, and its tokens.

    Attributes:
        tokens_S: one for each slot.
        log_probs_S: of each token among the whole vocabulary.
        box: xyxy in pixels of the image.
        label: position of the class.
        score: in [0, 1].
        spelled: the box as the tokens spell it, corners perhaps reversed; None where only `box` is known.
        coarse: `spelled` before a second token of the same slot gave a side more exactly; None as above.
    """

    tokens_S: np.ndarray
    log_probs_S: np.ndarray
    box: Box
    label: int
    score: float
    spelled: Box | None = None
    coarse: Box | None = None


def read_tokens(
    objects: Iterable[ObjectTokens], form: TokenFormat, names: Sequence[str], given: CheckedObjects
) -> Iterator[StreamToken | StreamObject]:
    """The tokens of each object, then the object, up to the end of the sequence.

    Args:
        objects: of one image, in the order of the sequence; each is taken only when it is needed.
        form: what the tokens stand for.
        names: the classes.
        given: the objects with which the sequence begins; they are passed on as they were given.
    """
    for number, one in enumerate(objects):
        is_given = number < len(given)
        label, box, score = (*given[number], 1.0) if is_given else (one.label, one.box, one.score)
        tokens = list(_tokens(one, form, number, box, is_given))
        yield from tokens
        if tokens[-1].slot == "end":
            return
        yield StreamObject(number, box, label, names[label], score, is_given)


def _tokens(one: ObjectTokens, form: TokenFormat, number: int, box: Box, given: bool) -> Iterator[StreamToken]:
    """The tokens of an object, up to the one that ends the sequence."""
    spelled, coarse = _texts(one.spelled or box), _texts(one.coarse or box)
    pairs = zip(one.tokens_S.tolist(), one.log_probs_S.tolist(), form.slots, strict=True)
    for place, (token, log_prob, slot) in enumerate(pairs):
        probability = min(1.0, math.exp(log_prob))
        if token == form.end:
            yield StreamToken(number, "end", "end", probability)
            return
        sides = coarse if slot in form.slots[place + 1 :] else spelled
        is_class = slot == "class"
        text = form.classes.get(token, f"#{token}") if is_class else " ".join(sides[side] for side in slot.split())
        yield StreamToken(number, slot, text, probability, given)


def _texts(box: Box) -> dict[str, str]:
    """Each side in whole pixels."""
    return dict(zip(SIDES, (str(round(side)) for side in box), strict=True))

"""Token streams of sequence detectors, and objects that are given to them: what they consist of, and their checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from boxwright.classes import Class, position
from boxwright.config import UserError, require

Box: TypeAlias = tuple[float, float, float, float]  # xyxy in pixels of the image
GivenObjects: TypeAlias = Sequence[tuple[Class, Sequence[float]]]  # of an image: class and box, xyxy in its pixels
CheckedObjects: TypeAlias = Sequence[tuple[int, Box]]  # the same, checked, with the positions of the classes


@dataclass(frozen=True)
class StreamToken:
    """One token of an object.

    Attributes:
        object: the object's number, from 0.
        slot: what the token stands for: ``y1``, ``x1``, ``y2``, ``x2`` or ``class``; ``x1 y1`` or ``x2 y2`` for a whole
            corner, which a second token of the same slot gives more exactly; ``end`` if it ends the sequence.
        text: in words: pixels of the image, one number for each coordinate in `slot`; the name of a class or ``noise``;
            ``end``.
        probability: among all tokens of the vocabulary, in [0, 1]; 1 for given tokens.
        given: whether the caller gave it.
    """

    object: int
    slot: str
    text: str
    probability: float
    given: bool = False


@dataclass(frozen=True)
class StreamObject:
    """An object whose tokens are complete.

    Attributes:
        number: of the object, from 0, as in its tokens.
        box: xyxy in pixels of the image.
        label: position of the most probable class in the names, whichever token was chosen.
        name: that class.
        score: as in `predict`, in [0, 1]; 1 for given objects.
        given: whether the caller gave it.
    """

    number: int
    box: Box
    label: int
    name: str
    score: float
    given: bool = False


def check_given(objects: Any, size: tuple[int, int], names: Sequence[str]) -> list[tuple[int, Box]]:
    """Given objects of one image, with the positions of their classes.

    Args:
        objects: as `GivenObjects`.
        size: width and height of the image.
        names: the classes that the detector knows.

    Raises:
        UserError: for what is no list of pairs of class and box, a class that the detector doesn't know, or a box that
            isn't one or reaches outside the image.
    """
    form = "given objects are a list of (class, (x1, y1, x2, y2))"
    require(isinstance(objects, list | tuple), f"{form}, for several images a list for each, not {objects!r}.")
    for pair in objects:
        require(isinstance(pair, list | tuple) and len(pair) == 2, f"{form}; {pair!r} is no such pair.")
    return [(position(name, names), _box(box, *size)) for name, box in objects]


def check_lists(given: Any, images: int) -> None:
    """Raise `UserError` unless the given objects are None, or a list with one entry for each image."""
    if given is not None:
        require(isinstance(given, list | tuple), f"given objects are a list for each image, not {given!r}.")
        require(len(given) == images, f"given objects are for {len(given)} images, but there are {images}.")


def _box(box: Any, width: int, height: int) -> Box:
    wrong = UserError(f"a box is four numbers x1, y1, x2, y2, not {box!r}.")
    try:
        corners = [] if isinstance(box, str | Mapping) else [float(value) for value in box]
    except (TypeError, ValueError):
        raise wrong from None
    if len(corners) != 4:
        raise wrong
    x1, y1, x2, y2 = corners
    inside = is_inside((x1, y1, x2, y2), (width, height))
    require(inside, f"the given box {corners} is no box x1, y1, x2, y2 inside its image of {width} x {height} pixels.")
    return x1, y1, x2, y2


def is_inside(box: Box, size: tuple[int, int]) -> bool:
    """Whether this is a box, xyxy, inside an image of this width and height."""
    x1, y1, x2, y2 = box
    return 0 <= x1 <= x2 <= size[0] and 0 <= y1 <= y2 <= size[1]

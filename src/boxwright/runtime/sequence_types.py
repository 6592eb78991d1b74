"""A sentence of objects while it is written, and objects that are known before: what is told, whatever computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from boxwright.classes import Class, position
from boxwright.config import UserError, require

GivenObjects: TypeAlias = Sequence[tuple[Class, Sequence[float]]]  # of an image: class and box, xyxy in its pixels
Box: TypeAlias = tuple[float, float, float, float]


@dataclass(frozen=True)
class StreamToken:
    """One word of an object.

    Attributes:
        object: the object's number, from 0.
        slot: what it says: ``y1``, ``x1``, ``y2``, ``x2`` or ``class``; ``x1 y1`` or ``x2 y2`` for a whole corner,
            which a second word of the slot says more exactly; ``end`` if it ends the sentence.
        text: as one reads it: pixels of the image, one number for each coordinate in `slot`; the name of a class or
            ``noise``; ``end``.
        probability: that the writer gave it among all words it knows, in [0, 1]; 1 for given words.
        given: whether it is the caller's, not the writer's.
    """

    object: int
    slot: str
    text: str
    probability: float
    given: bool = False


@dataclass(frozen=True)
class StreamObject:
    """An object of which all words stand.

    Attributes:
        number: of the object, from 0, as in its words.
        box: xyxy in pixels of the image.
        label: position of the most probable class in the names, whatever word was written.
        name: that class.
        score: as `predict` gives it, in [0, 1]; 1 for given objects.
        given: whether it is the caller's.
    """

    number: int
    box: Box
    label: int
    name: str
    score: float
    given: bool = False


def check_known(objects: Any, size: tuple[int, int], names: Sequence[str]) -> list[tuple[int, Box]]:
    """The positions of the classes of known objects, and their boxes.

    Args:
        objects: of one image, as `GivenObjects`.
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


def check_lists(given: Any, images: int) -> Sequence[GivenObjects]:
    """The known objects of each of several images; none of any where None is given.

    Raises:
        UserError: for what is no list of a list for each image.
    """
    known = [()] * images if given is None else given
    require(isinstance(known, list | tuple), f"given objects are a list for each image, not {known!r}.")
    require(len(known) == images, f"given objects are for {len(known)} images, but there are {images}.")
    return known


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

"""What a user tells a detector before it looks: which objects are known already, and how many to say."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any, TypeAlias

import torch

from boxwright.classes import Class, position
from boxwright.config import UserError, require
from boxwright.types import Batch

Known: TypeAlias = Sequence[tuple[Class, Sequence[float]]]  # of an image: class and box, xyxy in its pixels


def check_objects(objects: Any) -> None:
    """Raise `UserError` unless it is a whole number, or None."""
    whole = objects is None or (isinstance(objects, Integral) and not isinstance(objects, bool))
    require(whole, f"objects is how many to say, a whole number, not {objects!r}.")


def with_known(batch: Batch, known: Sequence[Known], names: Sequence[str]) -> Batch:
    """The batch with known objects, in the order given.

    Raises:
        UserError: for what is no list of pairs of class and box, a class that the detector doesn't know, or a box that
            isn't one or reaches outside its image.
    """
    for objects in known:
        _check_pairs(objects)
    most = max((len(objects) for objects in known), default=0)
    boxes_BN4, labels_BN = torch.zeros(len(batch), most, 4), torch.zeros(len(batch), most, dtype=torch.int64)
    valid_BN = torch.zeros(len(batch), most, dtype=torch.bool)
    for row, (objects, size) in enumerate(zip(known, batch.originals_B2.tolist(), strict=True)):
        for place, (name, box) in enumerate(objects):
            labels_BN[row, place] = position(name, names)
            boxes_BN4[row, place] = _box(box, *size)
            valid_BN[row, place] = True
    side_2 = torch.tensor(batch.images_BCHW.shape[-2:])
    scale_B14 = (batch.sizes_B2 / batch.originals_B2 / side_2).flip(-1).repeat(1, 2)[:, None]
    return replace(batch, boxes_BN4=boxes_BN4 * scale_B14, labels_BN=labels_BN, valid_BN=valid_BN)


def _check_pairs(objects: Any) -> None:
    form = "given objects are a list of (class, (x1, y1, x2, y2))"
    require(isinstance(objects, list | tuple), f"{form}, for several images a list for each, not {objects!r}.")
    for pair in objects:
        require(isinstance(pair, list | tuple) and len(pair) == 2, f"{form}; {pair!r} is no such pair.")


def _box(box: Any, height: int, width: int) -> torch.Tensor:
    try:
        corners = [] if isinstance(box, str | Mapping) else [float(value) for value in box]
    except (TypeError, ValueError):
        raise UserError(f"a box is four numbers x1, y1, x2, y2, not {box!r}.") from None
    require(len(corners) == 4, f"a box is four numbers x1, y1, x2, y2, not {box!r}.")
    x1, y1, x2, y2 = corners
    inside = 0 <= x1 <= x2 <= width and 0 <= y1 <= y2 <= height
    require(inside, f"the given box {corners} is no box x1, y1, x2, y2 inside its image of {width} x {height} pixels.")
    return torch.tensor(corners)

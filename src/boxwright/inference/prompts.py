"""What a user tells a detector before it looks: which classes, and which objects are known already."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

import torch

from boxwright.config import nearest, require
from boxwright.types import Batch

Known: TypeAlias = Sequence[tuple[str, Sequence[float]]]  # of an image: class and box, xyxy in its pixels


def class_positions(classes: str | Sequence[str] | None, names: Sequence[str]) -> list[int] | None:
    """Positions of some classes of a detector, one name or several; None for all.

    Raises:
        UserError: for none, or one that it doesn't know.
    """
    if classes is None:
        return None
    wanted = [classes] if isinstance(classes, str) else list(classes)
    require(wanted, "no class is left to look for; name at least one, or leave the choice out to find all.")
    return [_position(name, names) for name in wanted]


def with_known(batch: Batch, known: Sequence[Known], names: Sequence[str]) -> Batch:
    """The batch with known objects, in the order given.

    Raises:
        UserError: for a class that the detector doesn't know, or a box that isn't one or reaches outside its image.
    """
    most = max((len(objects) for objects in known), default=0)
    boxes_BN4, labels_BN = torch.zeros(len(batch), most, 4), torch.zeros(len(batch), most, dtype=torch.int64)
    valid_BN = torch.zeros(len(batch), most, dtype=torch.bool)
    for row, (objects, size) in enumerate(zip(known, batch.originals_B2.tolist(), strict=True)):
        for place, (name, box) in enumerate(objects):
            labels_BN[row, place] = _position(name, names)
            boxes_BN4[row, place] = _box(box, *size)
            valid_BN[row, place] = True
    side_2 = torch.tensor(batch.images_BCHW.shape[-2:])
    scale_B14 = (batch.sizes_B2 / batch.originals_B2 / side_2).flip(-1).repeat(1, 2)[:, None]
    return replace(batch, boxes_BN4=boxes_BN4 * scale_B14, labels_BN=labels_BN, valid_BN=valid_BN)


def _position(name: str, names: Sequence[str]) -> int:
    there = ", ".join(names[:10]) + (" ..." if len(names) > 10 else "")
    require(name in names, f"the detector doesn't know the class {name!r}{nearest(name, names)}; it knows {there}.")
    return list(names).index(name)


def _box(box: Sequence[float], height: int, width: int) -> torch.Tensor:
    corners = [float(value) for value in box]
    require(len(corners) == 4, f"a box is x1, y1, x2, y2, not {corners}.")
    x1, y1, x2, y2 = corners
    inside = 0 <= x1 <= x2 <= width and 0 <= y1 <= y2 <= height
    require(inside, f"the given box {corners} is no box x1, y1, x2, y2 inside its image of {width} x {height} pixels.")
    return torch.tensor(corners)

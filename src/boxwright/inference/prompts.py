"""What a user tells a detector before it looks: which objects are known already, and how many to say."""

from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

import torch

from boxwright.config import require
from boxwright.runtime.sequence_types import GivenObjects, check_known
from boxwright.types import Batch


def check_objects(objects: Any) -> None:
    """Raise `UserError` unless it is a whole number, or None."""
    whole = objects is None or (isinstance(objects, Integral) and not isinstance(objects, bool))
    require(whole, f"objects is how many to say, a whole number, not {objects!r}.")


def with_known(batch: Batch, known: Sequence[GivenObjects], names: Sequence[str]) -> Batch:
    """The batch with known objects, in the order given.

    Raises:
        UserError: for what is no list of pairs of class and box, a class that the detector doesn't know, or a box that
            isn't one or reaches outside its image.
    """
    sizes = [(width, height) for height, width in batch.originals_B2.tolist()]
    checked = [check_known(objects, size, names) for objects, size in zip(known, sizes, strict=True)]
    most = max(map(len, checked), default=0)
    boxes_BN4, labels_BN = torch.zeros(len(batch), most, 4), torch.zeros(len(batch), most, dtype=torch.int64)
    valid_BN = torch.zeros(len(batch), most, dtype=torch.bool)
    for row, objects in enumerate(checked):
        for place, (label, box) in enumerate(objects):
            labels_BN[row, place], boxes_BN4[row, place], valid_BN[row, place] = label, torch.tensor(box), True
    side_2 = torch.tensor(batch.images_BCHW.shape[-2:])
    scale_B14 = (batch.sizes_B2 / batch.originals_B2 / side_2).flip(-1).repeat(1, 2)[:, None]
    return replace(batch, boxes_BN4=boxes_BN4 * scale_B14, labels_BN=labels_BN, valid_BN=valid_BN)

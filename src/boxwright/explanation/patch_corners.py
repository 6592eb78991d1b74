"""Where the corners of objects may lie whose tokens are patches of the image, and what these tokens are called."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from boxwright.models.sequence.patch_vocabulary import PatchVocabulary

SLOTS = ("patch", "offset", "patch", "offset", "class")


@dataclass
class PatchCorners:
    """The corners of N objects.

    Attributes:
        maps_N2HW: the probability of each patch among the allowed ones, at the upper left and the lower right corner,
            given the tokens before it; sums to 1.
        canvas_2: height and width of the canvas as fractions of those of all patches, which may stick out of it.
    """

    maps_N2HW: np.ndarray
    canvas_2: tuple[float, float]


def patch_corners(vocabulary: PatchVocabulary, logits_N5V: Tensor, allowed_N5V: Tensor) -> PatchCorners:
    """The corners of objects whose class comes last.

    Args:
        vocabulary: the token ids.
        logits_N5V: at each position.
        allowed_N5V: the ids that are allowed there.
    """
    (rows, columns), patches = vocabulary.grid, slice(vocabulary.first_patch, vocabulary.size)
    corners = list(vocabulary.corners(noise=True))
    logits_N2P = logits_N5V.masked_fill(~allowed_N5V, -torch.inf)[:, corners, patches]
    maps_N2HW = logits_N2P.softmax(-1).unflatten(-1, (rows, columns)).cpu().numpy()
    height, width = rows * vocabulary.patch, columns * vocabulary.patch
    return PatchCorners(maps_N2HW, (vocabulary.height / height, vocabulary.width / width))


def coordinate_names(vocabulary: PatchVocabulary) -> dict[int, str]:
    """The row and column, counted from 1, of each patch, and of each subcell of a patch."""
    offsets = _places(vocabulary.first_coordinate, vocabulary.fine, vocabulary.fine)
    return offsets | _places(vocabulary.first_patch, *vocabulary.grid)


def _places(first: int, rows: int, columns: int) -> dict[int, str]:
    return {first + n: f"{n // columns + 1},{n % columns + 1}" for n in range(rows * columns)}

"""Copy objects of other images of the batch into an image, with soft edges, where they hide little.

CopyBlend of DEIMv2 (Huang et al. 2025), but opaque inside the box. An object is moved by whole pixels, so that its
pixels and its box stay exact. What is copied is its box, with a margin in which it fades out:

    other image            image
    +----------+           +----------+
    | +-+      |           |          |
    | |x|      |    -->    |    .-.   |    margin: faded linearly
    | +-+      |           |    |x|   |    box: covered completely
    +----------+           +----'-'---+
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from boxwright.types import Batch

PASTES = 3  # objects that an image gets at most, as in DEIM
PLACES = 8  # tried for each, of which the one that hides least is taken
DRAWS = 1 + 2 * PLACES  # random numbers for each: which object, and where
MOST_HIDDEN = 0.3  # of an object that is in the image already; an object for which there is no such place is left out
MARGIN = 0.1  # of the box's height and width


@dataclass
class _Objects:
    """The objects of an image: size (height, width) in pixels, boxes xyxy in pixels, and the share of each hidden."""

    size: tuple[int, int]
    boxes_N4: np.ndarray
    labels_N: np.ndarray
    hidden_N: np.ndarray


class _Paste(NamedTuple):
    """A copy of the whole pixels (y1, x1, y2, x2) of the image `donor`, moved by (y, x), into the image `row`."""

    row: int
    donor: int
    window: tuple[int, int, int, int]
    shift: tuple[int, int]
    boxes_X4: np.ndarray
    labels_X: np.ndarray


def copy_blend(batch: Batch, rows_C: Tensor, donors_CP: Tensor, draws_CPX: Tensor, min_visible: float) -> Batch:
    """Copy up to `PASTES` objects into each of some images.

    Args:
        batch: its images, floats, are changed.
        rows_C: rows to change.
        donors_CP: for each, the rows from which an object is copied, as they were before.
        draws_CPX: random numbers in [0, 1), `DRAWS` for each object.
        min_visible: other objects in a copied box become targets, too, if this fraction of their area is in it; none
            of those in the image before is hidden by more than the rest, nor by more than `MOST_HIDDEN`.

    Returns:
        The new objects stand behind the others; rows of padding may be between them.
    """
    before = _objects(batch)
    now = [replace(objects) for objects in before]
    limit = min(MOST_HIDDEN, 1 - min_visible)
    pastes: list[_Paste] = []
    for row, donors, draws_PX in zip(rows_C.tolist(), donors_CP.tolist(), draws_CPX.double().numpy(), strict=True):
        for donor, draws_X in zip(donors, draws_PX, strict=True):
            found = _choose(row, donor, before[donor], now[row], draws_X, (min_visible, limit))
            if found is not None:
                pastes.append(found)
                now[row] = _with(now[row], found)
    _paste(batch.images_BCHW, pastes, [objects.size for objects in before])
    return _with_targets(batch, pastes)


def _objects(batch: Batch) -> list[_Objects]:
    height, width = batch.images_BCHW.shape[-2:]
    boxes_BN4 = batch.boxes_BN4.cpu().double().numpy() * (width, height, width, height)
    labels_BN, valid_BN, sizes_B2 = (x.cpu().numpy() for x in (batch.labels_BN, batch.valid_BN, batch.sizes_B2))
    return [
        _Objects((int(size[0]), int(size[1])), boxes_N4[valid_N], labels_N[valid_N], np.zeros(int(valid_N.sum())))
        for size, boxes_N4, labels_N, valid_N in zip(sizes_B2, boxes_BN4, labels_BN, valid_BN, strict=True)
    ]


def _choose(
    row: int, donor: int, given: _Objects, there: _Objects, draws_X: np.ndarray, limits: tuple[float, float]
) -> _Paste | None:
    """An object of the donor and its place, or None if it has none, or there is no room.

    Args:
        row, donor: the images.
        given: the donor's objects.
        there: those in the image.
        draws_X: random numbers.
        limits: least visible share of a new object, most hidden share of one that is there.
    """
    if not len(given.boxes_N4):
        return None
    x1, y1, x2, y2 = given.boxes_N4[int(draws_X[0] * len(given.boxes_N4))]
    left, top = math.floor(x1 + 1e-3), math.floor(y1 + 1e-3)  # a side on a pixel's edge may be rounded over it
    right, bottom = min(math.ceil(x2 - 1e-3), given.size[1]), min(math.ceil(y2 - 1e-3), given.size[0])
    room_2 = np.array(there.size) - (bottom - top, right - left)
    if (room_2 < 0).any():
        return None
    places_T2 = np.floor(draws_X[1:].reshape(-1, 2) * (room_2 + 1)).astype(int)
    ends_T2 = places_T2 + np.array([bottom - top, right - left])
    cover_T4 = np.concatenate([places_T2[:, ::-1], ends_T2[:, ::-1]], 1)
    hidden_T = (there.hidden_N + _covered(there.boxes_N4, cover_T4[:, None])).max(1, initial=0.0)
    best = int(hidden_T.argmin())
    if hidden_T[best] > limits[1]:
        return None
    shift_y, shift_x = (places_T2[best] - (top, left)).tolist()
    window = np.array([left, top, right, bottom])
    kept_N = _covered(given.boxes_N4, window) >= max(limits[0], 1e-6) * (1 - 1e-5)
    boxes_X4 = np.concatenate(
        [np.maximum(given.boxes_N4[kept_N, :2], window[:2]), np.minimum(given.boxes_N4[kept_N, 2:], window[2:])], 1
    )
    moved_X4 = boxes_X4 + np.array([shift_x, shift_y, shift_x, shift_y])
    return _Paste(row, donor, (top, left, bottom, right), (shift_y, shift_x), moved_X4, given.labels_N[kept_N])


def _covered(boxes_N4: np.ndarray, window_X4: np.ndarray) -> np.ndarray:
    """The share of each box inside a window; they broadcast."""
    corner = np.maximum(boxes_N4[..., :2], window_X4[..., :2])
    inside = (np.minimum(boxes_N4[..., 2:], window_X4[..., 2:]) - corner).clip(0).prod(-1)
    return inside / (boxes_N4[..., 2:] - boxes_N4[..., :2]).prod(-1).clip(1e-12)


def _with(there: _Objects, paste: _Paste) -> _Objects:
    """The objects of an image after this copy."""
    (top, left, bottom, right), (y, x) = paste.window, paste.shift
    covered_N = _covered(there.boxes_N4, np.array([left + x, top + y, right + x, bottom + y]))
    return _Objects(
        there.size,
        np.concatenate([there.boxes_N4, paste.boxes_X4]),
        np.concatenate([there.labels_N, paste.labels_X]),
        np.concatenate([there.hidden_N + covered_N, np.zeros(len(paste.labels_X))]),
    )


def _paste(images_BCHW: Tensor, pastes: Sequence[_Paste], sizes: Sequence[tuple[int, int]]) -> None:
    """Copy the pixels; all are read before the first is written."""
    ready = []
    for paste in pastes:
        ramps = [
            _ramp(paste.window[axis], paste.window[axis + 2], sizes[paste.donor][axis], sizes[paste.row][axis], shift)
            for axis, shift in enumerate(paste.shift)
        ]
        (y, rows_H), (x, columns_W) = ramps
        alpha_HW = torch.from_numpy(rows_H[:, None] * columns_W).to(images_BCHW)
        crop_CHW = images_BCHW[paste.donor, :, y : y + len(rows_H), x : x + len(columns_W)].clone()
        ready.append((y + paste.shift[0], x + paste.shift[1], crop_CHW, alpha_HW))
    for paste, (y, x, crop_CHW, alpha_HW) in zip(pastes, ready, strict=True):
        height, width = alpha_HW.shape
        images_BCHW[paste.row, :, y : y + height, x : x + width].lerp_(crop_CHW, alpha_HW)


def _ramp(low: int, high: int, length: int, new_length: int, shift: int) -> tuple[int, np.ndarray]:
    """The first pixel of a copy with its margin along one axis, and the opacity of each: 1 from `low` to `high`.

    The margin ends where the image of `length` pixels ends, from which it comes, or that of `new_length`, into which
    it goes, moved by `shift`.
    """
    margin = max(1, round(MARGIN * (high - low)))
    first, last = max(low - margin, 0, -shift), min(high + margin, length, new_length - shift)
    centres_L = np.arange(first, last) + 0.5
    outside_L = np.maximum(low - centres_L, centres_L - high).clip(0)
    return first, 1 - outside_L / margin


def _with_targets(batch: Batch, pastes: Sequence[_Paste]) -> Batch:
    """The batch with new objects behind those that it had."""
    count_B = np.zeros(len(batch), dtype=int)
    for paste in pastes:
        count_B[paste.row] += len(paste.labels_X)
    height, width = batch.images_BCHW.shape[-2:]
    boxes_BX4, labels_BX = np.zeros((len(batch), count_B.max(), 4)), np.zeros((len(batch), count_B.max()), dtype=int)
    filled_B = np.zeros_like(count_B)
    for paste in pastes:
        rows = slice(filled_B[paste.row], filled_B[paste.row] + len(paste.labels_X))
        boxes_BX4[paste.row, rows] = paste.boxes_X4 / (width, height, width, height)
        labels_BX[paste.row, rows] = paste.labels_X
        filled_B[paste.row] = rows.stop
    valid_BX = np.arange(count_B.max()) < count_B[:, None]
    boxes, labels, valid = (torch.from_numpy(x) for x in (boxes_BX4, labels_BX, valid_BX))
    return replace(
        batch,
        boxes_BN4=torch.cat([batch.boxes_BN4, boxes.to(batch.boxes_BN4)], 1),
        labels_BN=torch.cat([batch.labels_BN, labels.to(batch.labels_BN)], 1),
        valid_BN=torch.cat([batch.valid_BN, valid.to(batch.valid_BN)], 1),
    )

"""Faults of boxes: no area, outside the image, twice on one object, of an odd size. All is computed in columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from boxwright.data.columns import ObjectColumns, counts_by_key, rows_by_key
from boxwright.data.faults import Fault
from boxwright.data.image_table import columns_of, mark_of, where_of
from boxwright.data.parsed import ParsedDataset, ParsedImage

ROUNDING = 1.0  # pixels by which a box may exceed the image: tools round, and VOC's counted from 1
DUPLICATE_IOU = 0.9
ODD_DEVIATIONS = 6  # robust standard deviations of the log area from the median of the class ...
ODD_RATIO = 8  # ... and so many times its area ...
ODD_COUNT = 20  # ... in a class with at least so many objects
_PRUNE = 8  # steps after which boxes without an open neighbour are forgotten
_CHUNK = 2**19  # objects that are looked at together
_SHAPE_FAULTS = {
    "not-a-number": "has a coordinate that is no number",
    "reversed-box": "ends before it begins",
    "empty-box": "has no area",
    "box-outside": "reaches outside the image of {} x {} pixels",
    "tiny-box": "is less than a pixel wide or high",
}


def box_faults(parsed: ParsedDataset) -> Iterator[Fault]:
    """The faults of all boxes, and how many images have none."""
    for images in parsed.splits.values():
        sizes_I2, objects = columns_of(images)
        for chunk in chunks(objects):
            yield from _shape_faults(images, sizes_I2, objects, chunk)
            yield from _duplicate_boxes(images, sizes_I2, objects, chunk, parsed.names)
        background = np.flatnonzero(np.diff(objects.starts) == 0)
        if len(background):
            first = images[int(background[0])].path.name
            what = f"{len(background)} images have no objects ({first}, ...)"
            yield Fault("background-image", str(parsed.root), what)
    yield from _odd_sizes(parsed)


def chunks(objects: ObjectColumns) -> Iterator[slice]:
    """The images whose objects are looked at together, one crowded image or many others."""
    first, images = 0, len(objects.starts) - 1
    while first < images:
        last = int(np.searchsorted(objects.starts, objects.starts[first] + _CHUNK, side="right")) - 1
        last = min(max(last, first + 1), images)
        yield slice(first, last)
        first = last


def images_of(objects: ObjectColumns, chunk: slice) -> np.ndarray:
    """The position of the image of each object in a chunk."""
    return np.repeat(np.arange(chunk.start, chunk.stop), np.diff(objects.starts[chunk.start : chunk.stop + 1]))


def parts(objects: ObjectColumns) -> Iterator[tuple[slice, np.ndarray]]:
    """The objects of each chunk, and the position of the image of each."""
    return ((_part(objects, chunk), images_of(objects, chunk)) for chunk in chunks(objects))


def _part(objects: ObjectColumns, chunk: slice) -> slice:
    """The objects of these images."""
    return slice(int(objects.starts[chunk.start]), int(objects.starts[chunk.stop]))


def _shape_faults(
    images: Sequence[ParsedImage], sizes_I2: np.ndarray, objects: ObjectColumns, chunk: slice
) -> Iterator[Fault]:
    """Boxes that are not finite, reversed, empty, outside or under a pixel: at most one fault per box."""
    part, image_N = _part(objects, chunk), images_of(objects, chunk)
    boxes_N4, limit_N4 = objects.boxes_M4[part], np.tile(sizes_I2[image_N], 2)
    with np.errstate(invalid="ignore"):
        size_N2 = boxes_N4[:, 2:] - boxes_N4[:, :2]
        clipped_N4 = boxes_N4.clip(0, limit_N4)
        inside_N2 = clipped_N4[:, 2:] - clipped_N4[:, :2]
        over_N = np.abs(boxes_N4 - clipped_N4).max(1)
    suspect_N = ~np.isfinite(boxes_N4).all(1) | (inside_N2.min(1) < 1) | (over_N > ROUNDING)
    for i in np.flatnonzero(suspect_N & (limit_N4 > 0).all(1)).tolist():
        kind = _shape_kind(boxes_N4[i], size_N2[i], inside_N2[i], over_N[i])
        width, height = sizes_I2[image_N[i]].tolist()
        what = f"the box {_corners(boxes_N4[i])} " + _SHAPE_FAULTS[kind].format(width, height)
        yield Fault(kind, _where(images, objects, image_N[i], part.start + i), what)


def _shape_kind(box_4: np.ndarray, size_2: np.ndarray, inside_2: np.ndarray, over: float) -> str:
    if not np.isfinite(box_4).all():
        return "not-a-number"
    if size_2.min() < 0:
        return "reversed-box"
    if size_2.min() == 0:
        return "empty-box"
    return "box-outside" if over > ROUNDING or inside_2.min() <= 0 else "tiny-box"


def _corners(box: Sequence[float] | np.ndarray) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in box) + ")"


def _where(images: Sequence[ParsedImage], objects: ObjectColumns, image: int, row: int) -> str:
    """File and record of an object."""
    return where_of(images, int(image), int(row - objects.starts[image]))


def _duplicate_boxes(
    images: Sequence[ParsedImage], sizes_I2: np.ndarray, objects: ObjectColumns, chunk: slice, names: Sequence[str]
) -> Iterator[Fault]:
    """Boxes of the same class with a high IoU: each box once, with the first that it lies on."""
    part, image_N = _part(objects, chunk), images_of(objects, chunk)
    boxes_N4, labels_N = objects.boxes_M4[part], objects.labels_M[part]
    with np.errstate(invalid="ignore"):
        has_area_N = np.isfinite(boxes_N4).all(1) & (boxes_N4[:, 2:] > boxes_N4[:, :2]).all(1)
    rows = np.flatnonzero(has_area_N & (sizes_I2[image_N] > 0).all(1))
    groups = np.unique(image_N[rows] * (len(names) + 1) + labels_N[rows], return_inverse=True)[1]
    for i, j, iou in alike_pairs(boxes_N4[rows], groups, DUPLICATE_IOU):
        one, other = int(rows[i]), int(rows[j])
        image, first = int(image_N[other]), int(objects.starts[image_N[other]]) - part.start
        mark = mark_of(images, image, one - first)
        what = f"{names[labels_N[other]]} {_corners(boxes_N4[other])} lies on object {mark} {_corners(boxes_N4[one])}"
        yield Fault("duplicate-box", where_of(images, image, other - first), f"{what}, IoU {iou:.2f}")


def alike_pairs(boxes_N4: np.ndarray, groups_N: np.ndarray, least: float) -> list[tuple[int, int, float]]:
    """Boxes with an IoU of at least `least` with an earlier box of their group: (earlier, later, IoU), each later once.

    Memory grows with the number of boxes, not of pairs: boxes are sorted by their left edge, and each is compared with
    the next one, with the one after it, and so on, as long as there the edges are near enough for such an IoU.

    Args:
        boxes_N4: xyxy, finite, with area.
        groups_N: only boxes of the same group, an integer, are compared.
        least: over 0.5.
    """
    order = np.lexsort((boxes_N4[:, 0], groups_N))
    boxes_N4, groups_N = boxes_N4[order], groups_N[order]
    areas_N = (boxes_N4[:, 2:] - boxes_N4[:, :2]).prod(1)
    reach_N = boxes_N4[:, 0] + (boxes_N4[:, 2] - boxes_N4[:, 0]) * (1 - least)
    found: dict[int, tuple[int, float]] = {}
    active, step = np.arange(len(order)), 0
    done_N = np.zeros(len(order), bool)  # these were found on another box
    while len(active):
        step += 1
        active = active[active + step < len(order)]
        if step % _PRUNE == 0:  # of many equal boxes, all but one are done soon
            active = active[
                ~done_N[active] | _reaches_open(active + step, done_N, groups_N, boxes_N4[:, 0], reach_N, active)
            ]
        others = active + step
        near = (groups_N[others] == groups_N[active]) & (boxes_N4[others, 0] <= reach_N[active])
        active, others = active[near], others[near]
        open_ = ~(done_N[active] & done_N[others])
        ones, others = active[open_], others[open_]
        corner_P2 = np.minimum(boxes_N4[ones, 2:], boxes_N4[others, 2:])
        shared_P = (corner_P2 - np.maximum(boxes_N4[ones, :2], boxes_N4[others, :2])).clip(0).prod(1)
        iou_P = shared_P / (areas_N[ones] + areas_N[others] - shared_P)
        alike = np.flatnonzero(iou_P >= least)
        for one, other, iou in zip(order[ones[alike]], order[others[alike]], iou_P[alike].tolist(), strict=True):
            pair = min(one, other), max(one, other)
            if int(pair[1]) not in found or found[int(pair[1])][0] > pair[0]:
                found[int(pair[1])] = int(pair[0]), iou
        later = np.where(order[ones[alike]] > order[others[alike]], ones[alike], others[alike])
        done_N[later] = True
    return sorted((one, other, iou) for other, (one, iou) in found.items())


def _reaches_open(
    first: np.ndarray, done_N: np.ndarray, groups_N: np.ndarray, left_N: np.ndarray, reach_N: np.ndarray, of: np.ndarray
) -> np.ndarray:
    """Whether a box from `first` on, within the reach of the box `of`, is not done."""
    open_ = np.append(np.flatnonzero(~done_N), len(done_N) - 1)
    following = open_[np.searchsorted(open_[:-1], first)]
    return ~done_N[following] & (groups_N[following] == groups_N[of]) & (left_N[following] <= reach_N[of])


def _odd_sizes(parsed: ParsedDataset) -> Iterator[Fault]:
    """Objects whose log area is many robust standard deviations from the median of their class."""
    columns = [columns_of(images)[1] for images in parsed.splits.values()]
    logs_M = np.concatenate([np.empty(0), *(_log_areas(objects) for objects in columns)])
    labels_M = np.concatenate([np.empty(0, np.int32), *(objects.labels_M for objects in columns)])
    order = rows_by_key(labels_M, len(parsed.names))
    ends = np.cumsum(counts_by_key(labels_M, len(parsed.names)))
    first_rows = np.cumsum([0, *(len(objects.labels_M) for objects in columns)])
    for label, rows in enumerate(np.split(order, ends[:-1])):
        rows = rows[~np.isnan(logs_M[rows])]
        logs = logs_M[rows]
        if len(logs) < ODD_COUNT:
            continue
        median = np.median(logs)
        deviation = 1.4826 * np.median(np.abs(logs - median))  # equals the standard deviation of a normal distribution
        for k in np.flatnonzero(np.abs(logs - median) > max(ODD_DEVIATIONS * deviation, np.log(ODD_RATIO))):
            split = int(np.searchsorted(first_rows, rows[k], side="right")) - 1
            row, objects = int(rows[k] - first_rows[split]), columns[split]
            ratio = np.exp(abs(logs[k] - median))
            size = (
                f"{ratio:.3g} times {'larger' if logs[k] > median else 'smaller'} in area than the median of its class"
            )
            image = int(np.searchsorted(objects.starts, row, side="right")) - 1
            where = _where(list(parsed.splits.values())[split], objects, image, row)
            yield Fault("odd-size", where, f"{parsed.names[label]} {_corners(objects.boxes_M4[row])} is {size}")


def _log_areas(objects: ObjectColumns) -> np.ndarray:
    """(M,) logarithm of each box's area; NaN for boxes without area, and ignored ones."""
    logs_M = np.full(len(objects.labels_M), np.nan)
    for chunk in chunks(objects):
        part = _part(objects, chunk)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            size_N2 = objects.boxes_M4[part, 2:] - objects.boxes_M4[part, :2]
            area_N = size_N2.prod(1)
            good_N = (size_N2 > 0).all(1) & np.isfinite(area_N) & ~objects.ignore_M[part]
            logs_M[part] = np.where(good_N, np.log(area_N), np.nan)
    return logs_M

"""Boxes around what annotation tools draw: rectangles, turned rectangles, polygons, ellipses and run-length masks.

Every function raises `ValueError`, `TypeError`, `KeyError` or `OverflowError` for a value that is no such shape; a
reader turns that into a fault. Boxes are xyxy in the unit of the input.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

Box = tuple[float, float, float, float]
MAX_RUNS = 10_000_000  # of a mask; an image of a hundred million pixels has fewer


class MalformedError(ValueError):
    """A record that is not as its format says; the message is half a sentence."""


def number(value: object) -> float:
    """A number, or a text that is one; NaN and infinity pass, since `check` reports them.

    Raises:
        MalformedError: it is neither.
    """
    try:
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return float(value)
    except (ValueError, OverflowError):
        pass
    raise MalformedError(f"{value!r:.60} is not a number")


def numbers(values: Iterable[object], count: int | None = None) -> list[float]:
    """A list of numbers, of a fixed length if one is given."""
    found = [number(value) for value in values]
    if count is not None and len(found) != count:
        raise MalformedError(f"has {len(found)} numbers where {count} are expected")
    return found


def plain_box(values: Iterable[object]) -> Box:
    """From ``x1, y1, x2, y2``, unchanged: `check` reports corners in the wrong order."""
    x1, y1, x2, y2 = numbers(values, 4)
    return x1, y1, x2, y2


def size_box(values: Iterable[object]) -> Box:
    """From ``x, y, width, height``."""
    x, y, width, height = numbers(values, 4)
    return x, y, x + width, y + height


def center_box(values: Iterable[object]) -> Box:
    """From ``center x, center y, width, height``."""
    x, y, width, height = numbers(values, 4)
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def points_box(xs: Iterable[object], ys: Iterable[object]) -> Box:
    """Around points, given as their x and y."""
    all_x, all_y = numbers(xs), numbers(ys)
    if not all_x or len(all_x) != len(all_y):
        raise MalformedError("a polygon has no points, or not as many x as y")
    return min(all_x), min(all_y), max(all_x), max(all_y)


def polygon_box(points: Sequence[Sequence[object]]) -> Box:
    """Around points ``[[x, y], ...]``."""
    return points_box([point[0] for point in points], [point[1] for point in points])


def flat_polygon_box(values: Sequence[object]) -> Box:
    """Around points ``[x1, y1, x2, y2, ...]``."""
    return points_box(values[::2], values[1::2])


def turned_box(box: Box, degrees: float, pivot: tuple[float, float]) -> Box:
    """Around a rectangle that is turned about a point, clockwise on the screen."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    moved = [(x - pivot[0], y - pivot[1]) for x in box[::2] for y in box[1::2]]
    return polygon_box([(pivot[0] + x * cos - y * sin, pivot[1] + x * sin + y * cos) for x, y in moved])


def ellipse_box(cx: object, cy: object, rx: object, ry: object, degrees: float = 0.0) -> Box:
    """Around an ellipse, turned about its centre."""
    x, y, a, b = numbers((cx, cy, rx, ry))
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    width, height = math.hypot(a * cos, b * sin), math.hypot(a * sin, b * cos)
    return x - width, y - height, x + width, y + height


def runs_box(counts: Sequence[int] | np.ndarray, height: int) -> Box:
    """Around a mask in COCO's run-length code: lengths of runs of 0 and 1 in turn, column after column."""
    ends_R = np.cumsum(np.asarray(counts, dtype=np.int64))
    starts, ends = ends_R[:-1:2], ends_R[1::2]
    starts = starts[: len(ends)]
    filled = ends > starts
    starts, last = starts[filled], ends[filled] - 1
    if height <= 0 or not len(starts):
        raise MalformedError("a mask is empty")
    whole = (starts // height != last // height).any()  # a run over two columns covers the first and the last row
    top = 0 if whole else int((starts % height).min())
    bottom = height - 1 if whole else int((last % height).max())
    return float(starts.min() // height), float(top), float(last.max() // height + 1), float(bottom + 1)


def decode_runs(text: str) -> np.ndarray:
    """Run lengths of COCO's compressed code: 5 bits a character; the 4th and later are differences to the last but one.

    The format is that of `rleToString` in https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c.
    """
    codes_C = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    if not len(codes_C) or len(codes_C) > MAX_RUNS or codes_C.min() < 0 or codes_C.max() > 63 or codes_C[-1] & 32:
        raise MalformedError("`counts` is not COCO's run-length code")
    last_R = np.flatnonzero((codes_C & 32) == 0)
    first_R = np.concatenate(([0], last_R[:-1] + 1))
    place_C = np.arange(len(codes_C)) - np.repeat(first_R, last_R - first_R + 1)
    if place_C.max() > 8:
        raise MalformedError("`counts` holds a number that is too large")
    value_R = np.add.reduceat((codes_C & 31) << (5 * place_C), first_R)
    value_R -= np.where(codes_C[last_R] & 16, 1 << (5 * (last_R - first_R + 1)), 0)
    value_R[1::2] = np.cumsum(value_R[1::2])
    value_R[2::2] = np.cumsum(value_R[2::2])
    return value_R


def mask_box(rle: dict) -> Box:
    """Around a run-length mask ``{"counts": ..., "size": [height, width]}``, compressed or not."""
    height, width = (int(side) for side in numbers(rle["size"], 2))
    counts = rle["counts"]
    runs_R = decode_runs(counts) if isinstance(counts, str) else np.array(numbers(counts)[:MAX_RUNS]).astype(np.int64)
    if (runs_R < 0).any() or runs_R.sum() > height * width:
        raise MalformedError("the runs of a mask do not fit its size")
    return runs_box(runs_R, height)


def segmentation_box(segmentation: object) -> Box:
    """Around COCO's `segmentation`: a list of polygons ``[x1, y1, x2, y2, ...]``, one polygon, or a run-length mask."""
    if isinstance(segmentation, dict):
        return mask_box(segmentation)
    if not isinstance(segmentation, list) or not segmentation:
        raise MalformedError("`segmentation` is neither polygons nor a run-length mask")
    parts = segmentation if isinstance(segmentation[0], list) else [segmentation]
    boxes = [flat_polygon_box(part) for part in parts]
    return points_box([x for box in boxes for x in box[::2]], [y for box in boxes for y in box[1::2]])

"""Detect small objects in large images: in overlapping tiles and in the whole image, merged.

A detector sees an image on a canvas of some hundred pixels, where an object of 20 pixels in an image of 4,000 is gone.
A tile shows it at its size. The whole image is looked at, too, and counts for objects that no tile shows whole; for
others it would add false alarms, since what is small in it is easily taken for something else (`benchmarks/tiles.py`).

Boxes of two views (tiles, or the whole image) are the same object if they have the same class and overlap by an IoU of
`SAME`. A box that a tile's inner edge cuts off is also a part of every box that holds `PART` of it, so that halves do
not stay beside the whole. Of the same object, a box that is not cut counts, else one that is; then the higher score.
Boxes of one view never exclude each other: detectors here need no NMS.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from boxwright.config import require
from boxwright.detections import Detections
from boxwright.runtime.inputs import DecodedImage, reduced

SAME, PART = 0.5, 0.7  # IoU; share of a cut box's area
_EDGE = 0.01  # of a tile's side: a box that comes so near to an inner edge is cut off there
_LEAST = 32  # pixels of a tile


@dataclass(frozen=True)
class Tiling:
    """How images are cut.

    Attributes:
        side: of the square tiles, in pixels of the image.
        overlap: share of a side by which neighbours overlap, at least.

    Raises:
        UserError: for a side under 32 pixels, or an overlap that is not at least 0 and under 0.9.
    """

    side: int
    overlap: float = 0.2

    def __post_init__(self) -> None:
        whole = isinstance(self.side, int) and not isinstance(self.side, bool) and self.side >= _LEAST
        require(whole, f"a tile has a side of at least {_LEAST} pixels, not {self.side!r}.")
        number = isinstance(self.overlap, int | float) and not isinstance(self.overlap, bool)
        fits = number and 0 <= self.overlap < 0.9
        require(fits, f"tiles overlap by a share of their side, at least 0 and under 0.9, not {self.overlap!r}.")

    def tiles(self, width: int, height: int) -> np.ndarray:
        """The tiles of an image, (T, 4) int, xyxy in pixels; none if the image is no larger than a tile."""
        if max(width, height) <= self.side:
            return np.zeros((0, 4), int)
        xs, ys = self._starts(width), self._starts(height)
        return np.array([(x, y, min(x + self.side, width), min(y + self.side, height)) for y in ys for x in xs])

    def _starts(self, length: int) -> list[int]:
        """Where tiles begin along one side: as few as overlap enough, spread evenly."""
        if length <= self.side:
            return [0]
        count = int(np.ceil((length - self.side) / (self.side * (1 - self.overlap)))) + 1
        return np.linspace(0, length - self.side, count).round().astype(int).tolist()


def views(image: DecodedImage, tiles_T4: np.ndarray, canvas: int) -> Iterator[DecodedImage]:
    """The whole image, then its tiles; each reduced as far as the canvas allows.

    Args:
        image: not reduced.
        tiles_T4: `Tiling.tiles`.
        canvas: side of the detector's, in pixels.
    """
    yield DecodedImage(reduced(image.image, canvas), image.size)
    for x1, y1, x2, y2 in tiles_T4.tolist():
        yield DecodedImage(reduced(image.image.crop((x1, y1, x2, y2)), canvas), (x2 - x1, y2 - y1))


def merge(found: list[Detections], tiles_T4: np.ndarray, size: tuple[int, int]) -> Detections:
    """The objects of an image from those of its views, best first.

    Args:
        found: of the whole image, then of each tile, in pixels of the view.
        tiles_T4: the tiles.
        size: (width, height) of the image.
    """
    whole_14 = np.array([(0, 0, *size)])
    views_V4 = np.concatenate([whole_14, tiles_T4])
    boxes_N4 = np.concatenate([one.boxes_N4 + np.tile(view[:2], 2) for one, view in zip(found, views_V4, strict=True)])
    scores_N, labels_N = (np.concatenate([getattr(one, name) for one in found]) for name in ("scores_N", "labels_N"))
    view_N = np.repeat(np.arange(len(found)), [len(one) for one in found])
    cut_N = _is_cut(boxes_N4, views_V4[view_N], size)
    seen_N = (view_N > 0) | ~_is_whole_in_a_tile(boxes_N4, tiles_T4, size)
    order_N = np.lexsort((-scores_N, cut_N))
    order_N = order_N[seen_N[order_N]]
    kept = _kept(boxes_N4[order_N].astype(float), labels_N[order_N], view_N[order_N], cut_N[order_N])
    rows = order_N[kept]
    rows = rows[np.argsort(-scores_N[rows], kind="stable")]
    return Detections(boxes_N4[rows].astype(np.float32), scores_N[rows], labels_N[rows], found[0].names)


def _is_whole_in_a_tile(boxes_N4: np.ndarray, tiles_T4: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Whether each box lies in a tile that does not cut it off, (N,)."""
    whole_N = np.zeros(len(boxes_N4), bool)
    for tile_4 in tiles_T4:
        inside_N = (boxes_N4[:, :2] >= tile_4[:2]).all(1) & (boxes_N4[:, 2:] <= tile_4[2:]).all(1)
        whole_N |= inside_N & ~_is_cut(boxes_N4, np.tile(tile_4, (len(boxes_N4), 1)), size)
    return whole_N


def _is_cut(boxes_N4: np.ndarray, views_N4: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Whether each box ends at an edge of its view that is not an edge of the image, (N,)."""
    margin_N1 = _EDGE * (views_N4[:, 2:] - views_N4[:, :2]).max(1, keepdims=True)
    low_N2 = (boxes_N4[:, :2] <= views_N4[:, :2] + margin_N1) & (views_N4[:, :2] > 0)
    high_N2 = (boxes_N4[:, 2:] >= views_N4[:, 2:] - margin_N1) & (views_N4[:, 2:] < np.array(size))
    return (low_N2 | high_N2).any(1)


def _kept(boxes_N4: np.ndarray, labels_N: np.ndarray, view_N: np.ndarray, cut_N: np.ndarray) -> np.ndarray:
    """Positions of the boxes that remain; those that come first exclude those of other views behind them."""
    area_N, tiny = (boxes_N4[:, 2:] - boxes_N4[:, :2]).clip(0).prod(1), np.finfo(float).tiny
    waiting_N, kept = np.ones(len(boxes_N4), bool), []
    for i in range(len(boxes_N4)):
        if not waiting_N[i]:
            continue
        kept.append(i)
        sides_N2 = np.minimum(boxes_N4[:, 2:], boxes_N4[i, 2:]) - np.maximum(boxes_N4[:, :2], boxes_N4[i, :2])
        shared_N = sides_N2.clip(0).prod(1)
        same_N = shared_N / np.maximum(area_N + area_N[i] - shared_N, tiny) >= SAME
        part_N = cut_N & (shared_N / np.maximum(area_N, tiny) >= PART)
        waiting_N &= ~((same_N | part_N) & (labels_N == labels_N[i]) & (view_N != view_N[i]))
    return np.array(kept, int)

"""What a data set is made of: classes, sizes, aspect ratios, and where in the image the boxes lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from boxwright.data.image_table import columns_of
from boxwright.data.parsed import ParsedDataset, ParsedImage

GRID = 64  # cells of the heat map in each direction
_SIDES = (4, 8, 16, 32, 64, 128, 256, 512)  # pixels
_IMAGE_SIDES = (128, 256, 512, 1024, 2048, 4096)
_SHARES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7)
_COUNTS = (1, 2, 3, 5, 9, 17, 33, 65, 129)
_RATIOS = (1 / 4, 1 / 3, 1 / 2, 1 / 1.5, 1 / 1.2, 1.2, 1.5, 2, 3, 4)


@dataclass(frozen=True)
class Histogram:
    """How many things lie between each two limits.

    Attributes:
        title: what is counted.
        rows: name of each range, count, and its share of the largest count, 0 to 1.
    """

    title: str
    rows: list[tuple[str, int, float]]


@dataclass(frozen=True)
class Boxes:
    """All boxes with an area inside their image, clipped to it.

    Attributes:
        boxes_N4: xyxy in pixels, float64.
        image_N: position of each box's image among `images`.
        object_N: position of each box among the objects of its image.
        labels_N: class positions.
        sizes_I2: width and height of each image in pixels.
        counts_I: objects of each image, those without an area among them.
        splits: all images, split by split.
    """

    boxes_N4: np.ndarray
    image_N: np.ndarray
    object_N: np.ndarray
    labels_N: np.ndarray
    sizes_I2: np.ndarray
    counts_I: np.ndarray
    splits: Sequence[Sequence[ParsedImage]]

    @property
    def sizes(self) -> np.ndarray:
        """Width and height of each box in pixels, (N, 2)."""
        return self.boxes_N4[:, 2:] - self.boxes_N4[:, :2]

    def image(self, position: int) -> ParsedImage:
        """An image by its position among all."""
        for images in self.splits:
            if position < len(images):
                return images[position]
            position -= len(images)
        raise IndexError(position)


def collect(parsed: ParsedDataset) -> Boxes:
    """The boxes of all splits."""
    splits = list(parsed.splits.values())
    columns = [columns_of(images) for images in splits]
    sizes_I2 = np.concatenate([np.empty((0, 2)), *(sizes for sizes, _ in columns)])
    counts_I = np.concatenate([np.empty(0, np.int64), *(np.diff(objects.starts) for _, objects in columns)])
    image_N = np.repeat(np.arange(len(counts_I)), counts_I)
    object_N = np.arange(len(image_N)) - np.repeat(np.cumsum(counts_I) - counts_I, counts_I)
    boxes_N4 = np.concatenate([np.empty((0, 4)), *(objects.boxes_M4 for _, objects in columns)])
    boxes_N4 = np.clip(boxes_N4, 0, np.tile(sizes_I2[image_N], (1, 2)))  # NaN stays NaN
    kept = (boxes_N4[:, 2:] > boxes_N4[:, :2]).all(1)  # False on NaN, too
    labels_N = np.concatenate([np.empty(0, np.int64), *(objects.labels_M for _, objects in columns)])
    return Boxes(boxes_N4[kept], image_N[kept], object_N[kept], labels_N[kept], sizes_I2, counts_I, splits)


def histograms(boxes: Boxes) -> list[Histogram]:
    """Sizes and aspect ratios of boxes and images, and objects per image."""
    side_N = np.sqrt(boxes.sizes.prod(1))
    image_area_N = boxes.sizes_I2.prod(1)[boxes.image_N]
    known_I2 = boxes.sizes_I2[boxes.sizes_I2.min(1) > 0] if len(boxes.sizes_I2) else boxes.sizes_I2
    box_ratio_N, image_ratio_I = (sizes[:, 0] / sizes[:, 1] for sizes in (boxes.sizes, known_I2))
    sides, image_sides = ([f"{side:,} px" for side in limits] for limits in (_SIDES, _IMAGE_SIDES))
    shares = [f"{100 * share:.0f} %" for share in _SHARES]
    return [
        _histogram("Size of boxes: root of the area", side_N, _SIDES, sides),
        _histogram("Size of boxes: share of the image's side", side_N / np.sqrt(image_area_N), _SHARES, shares),
        _histogram("Aspect ratio of boxes, width : height", box_ratio_N, _RATIOS, [_ratio(r) for r in _RATIOS]),
        _counts("Objects an image", boxes.counts_I),
        _histogram("Size of images: longer side", known_I2.max(1, initial=0), _IMAGE_SIDES, image_sides),
        _histogram("Aspect ratio of images, width : height", image_ratio_I, _RATIOS, [_ratio(r) for r in _RATIOS]),
    ]


def _ratio(value: float) -> str:
    return f"{value:g} : 1" if value > 1 else f"1 : {1 / value:g}"


def _histogram(title: str, values: np.ndarray, limits: Sequence[float], texts: Sequence[str]) -> Histogram:
    """Counts below the first limit, between each two, and from the last."""
    counts = np.bincount(np.searchsorted(limits, values, side="right"), minlength=len(limits) + 1)
    between = [f"{low} to {high}" for low, high in pairwise(texts)]
    return _rows(title, [f"under {texts[0]}", *between, f"from {texts[-1]}"], counts)


def _counts(title: str, values: np.ndarray) -> Histogram:
    counts = np.bincount(np.searchsorted(_COUNTS, values, side="right"), minlength=len(_COUNTS) + 1)
    pairs = pairwise(_COUNTS)
    between = [f"{low}" if high == low + 1 else f"{low} to {high - 1}" for low, high in pairs]
    return _rows(title, ["none", *between, f"{_COUNTS[-1]} or more"], counts)


def _rows(title: str, names: Sequence[str], counts: np.ndarray) -> Histogram:
    used = np.flatnonzero(counts)
    kept = range(used[0], used[-1] + 1) if len(used) else range(0)
    return Histogram(title, [(names[i], int(counts[i]), float(counts[i] / counts.max())) for i in kept])


def heat_map(boxes: Boxes, label: int | None = None) -> np.ndarray:
    """Share of the boxes that cover each cell (GRID, GRID) of their image, 0 to 1; of one class if one is given."""
    chosen = np.ones(len(boxes.labels_N), bool) if label is None else boxes.labels_N == label
    cells_N4 = boxes.boxes_N4[chosen] / np.tile(boxes.sizes_I2[boxes.image_N[chosen]], (1, 2)) * GRID
    x1, y1 = np.floor(cells_N4[:, :2]).astype(int).clip(0, GRID - 1).T
    x2, y2 = np.ceil(cells_N4[:, 2:]).astype(int).clip(1, GRID).T
    corners = np.zeros((GRID + 1, GRID + 1))  # its double cumulative sum has each box's number of cells filled
    for y, x, sign in ((y1, x1, 1), (y1, x2, -1), (y2, x1, -1), (y2, x2, 1)):
        np.add.at(corners, (y, x), sign)
    return corners.cumsum(0).cumsum(1)[:GRID, :GRID] / max(1, chosen.sum())


def oddest(boxes: Boxes, count: int) -> list[tuple[int, float]]:
    """Positions of the boxes whose size or aspect ratio is furthest from their class's median, the oddest first, one
    an image, and by how many robust standard deviations; only boxes over 3, in classes of 20 or more boxes.
    """
    with np.errstate(divide="ignore"):
        features_N2 = np.log(np.stack([boxes.sizes.prod(1), boxes.sizes[:, 0] / boxes.sizes[:, 1]], 1))
    score_N = np.zeros(len(features_N2))
    for label in np.unique(boxes.labels_N):
        of_class = np.flatnonzero(boxes.labels_N == label)
        if len(of_class) >= 20:
            away = np.abs(features_N2[of_class] - np.median(features_N2[of_class], axis=0))
            deviation = np.maximum(1.4826 * np.median(away, axis=0), 0.05)  # equal boxes: a twentieth counts as one
            score_N[of_class] = (away / deviation).max(1)
    order = np.argsort(-score_N, kind="stable")
    order = order[score_N[order] > 3]
    _, first = np.unique(boxes.image_N[order], return_index=True)
    return [(int(i), float(score_N[i])) for i in order[np.sort(first)[:count]]]


def most_objects(boxes: Boxes, count: int) -> list[int]:
    """Positions of the images with the most objects, the fullest first; those with two or more."""
    return [int(i) for i in np.argsort(-boxes.counts_I, kind="stable")[:count] if boxes.counts_I[i] > 1]

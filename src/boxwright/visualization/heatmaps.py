"""Heat maps over a photograph: the distribution of a coordinate, and the attention of a network."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter1d

_HEAT_COLOURS = (matplotlib.colormaps["inferno"](np.linspace(0.15, 1, 256))[:, :3] * 255).astype(np.float32)
_BRIGHTNESS, _SATURATION = 0.78, 0.4  # of the photograph behind the heat
_SMOOTHING = 0.008  # standard deviation relative to the image: one coordinate alone would be a line too thin to see
_LINE = "#35e0ff"  # of boxes, arrows, rings and crosses
MAP_COLOURS = ("#ffd23f", "#ff5d8f", "#4be3a4", "#b08cff", "#ff9a3c", "#f4f4f4")  # of points, finest map first
_FAINTEST = 0.1  # brightness of a box that is still drawn
_OVERSAMPLING = 3  # points are drawn this many times larger, then reduced
Box = tuple[float, float, float, float]  # xyxy in fractions of the image


def pixel_probabilities(bins_R: np.ndarray, pixels: int, valid: float) -> np.ndarray:
    """The probability that a coordinate lies in each of a row of pixels.

    Args:
        bins_R: the probability of each coordinate; coordinate i stands for all values that are rounded to i / (R - 1)
            of the canvas.
        pixels: how many pixels the image has in this direction.
        valid: the fraction of the canvas that is image; coordinates beyond are left out.
    """
    edges_R1 = ((np.arange(len(bins_R) + 1) - 0.5) / (len(bins_R) - 1)).clip(0, 1)
    up_to_R1 = np.concatenate([[0.0], bins_R.astype(np.float64).cumsum()])
    return np.diff(np.interp(np.arange(pixels + 1) / pixels * valid, edges_R1, up_to_R1))


def coordinate_heat(
    image: Image.Image, bins_R: np.ndarray, valid_2: tuple[float, float], at: float, axis: int
) -> Image.Image:
    """A distribution over y (axis 0) as rows or over x (axis 1) as columns; arrows at both ends of the chosen one.

    Args:
        image: the photograph, in the size of the result.
        bins_R: the probability of each coordinate.
        valid_2: height and width of the valid area, in (0, 1] of the canvas.
        at: the chosen coordinate, in [0, 1] of the canvas.
        axis: 0 or 1.
    """
    length, across = image.size[::-1][axis], image.size[axis]
    mass = _smoothed(bins_R, length, valid_2[axis])
    drawn = heat(image, np.broadcast_to(mass[:, None] if axis == 0 else mass, image.size[::-1]), 0.5)
    at, size, pen = at / valid_2[axis] * length, max(image.size) / 22, ImageDraw.Draw(drawn)
    for edge, tip in ((0, size), (across - 1, across - 1 - size)):
        arrow = [(edge, at - size / 1.7), (edge, at + size / 1.7), (tip, at)]
        pen.polygon([(x, y) if axis == 0 else (y, x) for x, y in arrow], fill=_LINE)
    return drawn


def corner_heat(
    image: Image.Image,
    y_R: np.ndarray,
    x_R: np.ndarray,
    valid_2: tuple[float, float],
    point: tuple[float, float],
    box: Box | None = None,
) -> Image.Image:
    """The product of the distributions of y and x, a ring around the chosen point (y, x), and the box.

    Args:
        image: the photograph, in the size of the result.
        y_R, x_R: the probability of each coordinate.
        valid_2: as in `coordinate_heat`.
        point: y and x, in [0, 1] of the canvas.
        box: to be drawn.
    """
    y_H, x_W = _smoothed(y_R, image.height, valid_2[0]), _smoothed(x_R, image.width, valid_2[1])
    drawn = heat(image, np.outer(y_H, x_W), 0.5)
    _mark(drawn, valid_2, point, box)
    return drawn


def patch_heat(
    image: Image.Image,
    patches_HW: np.ndarray,
    canvas_2: tuple[float, float],
    valid_2: tuple[float, float],
    point: tuple[float, float],
    box: Box | None = None,
) -> Image.Image:
    """The distribution of a corner over the patches of the canvas, a ring around the chosen point (y, x), and the box.

    Args:
        image: the photograph, in the size of the result.
        patches_HW: the probability of each patch.
        canvas_2: height and width of the canvas, in (0, 1] of those of all patches.
        valid_2: as in `coordinate_heat`.
        point: y and x, in [0, 1] of the canvas.
        box: to be drawn.
    """
    valid = (canvas_2[0] * valid_2[0], canvas_2[1] * valid_2[1])
    drawn = attention_heat(image, np.sqrt(patches_HW), valid)
    _mark(drawn, valid_2, point, box)
    return drawn


def _mark(drawn: Image.Image, valid_2: tuple[float, float], point: tuple[float, float], box: Box | None) -> None:
    """Draw a ring around a corner, and the box."""
    if box is not None:
        draw_box(drawn, box)
    at_y, at_x = point[0] / valid_2[0] * drawn.height, point[1] / valid_2[1] * drawn.width
    radius, line = max(drawn.size) / 36, max(2, round(max(drawn.size) / 240))
    ring = (at_x - radius, at_y - radius, at_x + radius, at_y + radius)
    ImageDraw.Draw(drawn).ellipse(ring, outline=_LINE, width=line)


def attention_heat(
    image: Image.Image, map_HW: np.ndarray, valid_2: tuple[float, float], box: Box | None = None, full: float = 0.0
) -> Image.Image:
    """Attention to each cell of the canvas, enlarged smoothly, and the box; `full` is as in `heat`."""
    height, width = (cells * valid for cells, valid in zip(map_HW.shape, valid_2, strict=True))
    cells = Image.fromarray(map_HW[: math.ceil(height), : math.ceil(width)].astype(np.float32))
    fine_HW = np.asarray(cells.resize(image.size, Image.Resampling.BICUBIC, box=(0, 0, width, height)))
    drawn = heat(image, fine_HW.clip(0), 1.0, full)
    if box is not None:
        draw_box(drawn, box)
    return drawn


def point_heat(
    image: Image.Image, points_VN2: np.ndarray, weights_VN: np.ndarray, box: Box | None = None
) -> Image.Image:
    """Attention to points on feature maps as discs, coloured by map (`MAP_COLOURS`), and the box.

    Args:
        image: the photograph, in the size of the result.
        points_VN2: x and y in fractions of the image; points outside it are not visible.
        weights_VN: attention weights; the area of a disc is proportional. Discs are smaller where points are close.
        box: to be drawn.
    """
    drawn = Image.fromarray(_dimmed(image).round().astype(np.uint8))
    if box is not None:
        draw_box(drawn, box)
    fine = drawn.resize((drawn.width * _OVERSAMPLING, drawn.height * _OVERSAMPLING), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(fine)
    most, spread = max(float(weights_VN.max(initial=0)), 1e-30), float((points_VN2 * fine.size).std((0, 1)).mean())
    largest = min(max(0.3 * spread, max(fine.size) / 110), max(fine.size) / 40)
    for v, n in zip(*np.unravel_index(np.argsort(-weights_VN, axis=None), weights_VN.shape), strict=True):
        x, y = points_VN2[v, n] * fine.size
        radius = max(largest * math.sqrt(weights_VN[v, n] / most), _OVERSAMPLING)
        disc = (x - radius, y - radius, x + radius, y + radius)
        pen.ellipse(disc, fill=MAP_COLOURS[v % len(MAP_COLOURS)], outline="black", width=_OVERSAMPLING // 2)
    return fine.resize(drawn.size, Image.Resampling.BOX)


def box_heat(image: Image.Image, boxes_N4: np.ndarray, weights_N: np.ndarray, box: Box | None = None) -> Image.Image:
    """Boxes with weights on the dimmed image, the heaviest brightest and on top, and one box that is drawn as a line.

    Args:
        image: the photograph, in the size of the result.
        boxes_N4: xyxy in fractions of the image.
        weights_N: at least 0; brightness and width are by their square roots, so that small ones are visible.
        box: to be drawn inside all others.
    """
    drawn = Image.fromarray(_dimmed(image).round().astype(np.uint8))
    levels_N = np.sqrt(weights_N / max(float(weights_N.max(initial=0)), 1e-30))
    thick = max(image.size) / 60
    for n in np.argsort(levels_N, kind="stable"):
        if levels_N[n] >= _FAINTEST:
            ink = Image.new("L", drawn.size)
            corners = _corners(drawn, boxes_N4[n])
            ImageDraw.Draw(ink).rectangle(
                corners, outline=round(255 * levels_N[n]), width=math.ceil(thick * levels_N[n])
            )
            red, green, blue = _HEAT_COLOURS[round(255 * levels_N[n])].round().astype(int).tolist()
            drawn.paste((red, green, blue), mask=ink)
    if box is not None:
        draw_box(drawn, box)
    return drawn


def draw_cross(image: Image.Image, point: tuple[float, float]) -> None:
    """Draw a cross with an open centre onto the image, at (x, y) in fractions of it."""
    x, y = (at * length for at, length in zip(point, image.size, strict=True))
    near, far, pen = max(image.size) / 90, max(image.size) / 28, ImageDraw.Draw(image)
    for colour, width in (("black", 5), (_LINE, 2)):
        for sign in (-1, 1):
            pen.line((x + sign * near, y, x + sign * far, y), fill=colour, width=width)
            pen.line((x, y + sign * near, x, y + sign * far), fill=colour, width=width)


def draw_box(image: Image.Image, box: Box) -> None:
    """Draw a thin box onto the image."""
    corners, width = _corners(image, box), max(2, round(max(image.size) / 300))
    ImageDraw.Draw(image).rectangle(corners, outline=_LINE, width=width)


def _corners(image: Image.Image, box: Sequence[float] | np.ndarray) -> Box:
    """A box in pixels of the image, whichever way round its corners are."""
    x1, y1, x2, y2 = (float(side) * length for side, length in zip(box, image.size * 2, strict=True))
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def heat(image: Image.Image, map_HW: np.ndarray, power: float, full: float = 0.0) -> Image.Image:
    """The dimmed image with a map on it, from transparent (0) to bright (its maximum).

    Args:
        image: the photograph.
        map_HW: values of at least 0, of the same size.
        power: brightness is the value to this power; under 1, small values are visible as well.
        full: the brightest value where no value of the map is greater.
    """
    photo_HW3 = _dimmed(image)
    level_HW = (map_HW / max(float(map_HW.max()), full, 1e-30)) ** power
    colours_HW3 = _HEAT_COLOURS[(level_HW * 255).round().astype(int)]
    cover_HW1 = (level_HW * 1.3).clip(0, 0.92)[..., None]
    return Image.fromarray((photo_HW3 * (1 - cover_HW1) + colours_HW3 * cover_HW1).round().astype(np.uint8))


def _dimmed(image: Image.Image) -> np.ndarray:
    """The photograph, darker and less saturated, (H, W, 3) float."""
    photo_HW3 = np.asarray(image, np.float32)
    grey_HW1 = photo_HW3.mean(-1, keepdims=True)
    return (photo_HW3 * _SATURATION + grey_HW1 * (1 - _SATURATION)) * _BRIGHTNESS


def _smoothed(bins_R: np.ndarray, pixels: int, valid: float) -> np.ndarray:
    return gaussian_filter1d(pixel_probabilities(bins_R, pixels, valid), max(1.0, _SMOOTHING * pixels))

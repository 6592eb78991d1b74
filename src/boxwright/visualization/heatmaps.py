"""Heat over a photograph: where the next coordinate may lie, and where a network looks."""

from __future__ import annotations

import math

import matplotlib
import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter1d

_COLOURS = (matplotlib.colormaps["inferno"](np.linspace(0.15, 1, 256))[:, :3] * 255).astype(np.float32)
_BRIGHT, _COLOURFUL = 0.78, 0.4  # the photograph behind the heat
_SMEAR = 0.008  # deviation by which a coordinate is smeared, relative to the picture: one alone would be a hair
_MARK = "#35e0ff"
DOTS = ("#ffd23f", "#ff5d8f", "#4be3a4", "#b08cff", "#ff9a3c", "#f4f4f4")  # of maps, the finest first
_FINE = 3  # dots are drawn so many times as large, then reduced
Box = tuple[float, float, float, float]


def spread(bins_R: np.ndarray, pixels: int, part: float) -> np.ndarray:
    """The probability that each of a row of pixels holds the coordinate.

    Args:
        bins_R: the probability of each coordinate; coordinate i means i / (R - 1) of the canvas, and all that rounds to
            it.
        pixels: how many pixels the image has in this direction.
        part: the part of the canvas that is image; what lies beyond is left out.
    """
    edges_R1 = ((np.arange(len(bins_R) + 1) - 0.5) / (len(bins_R) - 1)).clip(0, 1)
    up_to_R1 = np.concatenate([[0.0], bins_R.astype(np.float64).cumsum()])
    return np.diff(np.interp(np.arange(pixels + 1) / pixels * part, edges_R1, up_to_R1))


def place_heat(
    image: Image.Image, bins_R: np.ndarray, part_2: tuple[float, float], at: float, axis: int
) -> Image.Image:
    """A distribution over y (axis 0) as rows or over x (axis 1) as columns; arrows at both ends of the chosen one.

    Args:
        image: the photograph, as large as the picture shall be.
        bins_R: the probability of each coordinate.
        part_2: height and width of the part of the canvas that is image.
        at: the chosen coordinate, in [0, 1] of the canvas.
        axis: 0 or 1.
    """
    pixels, across = image.size[::-1][axis], image.size[axis]
    mass = _smeared(bins_R, pixels, part_2[axis])
    picture = heat(image, np.broadcast_to(mass[:, None] if axis == 0 else mass, image.size[::-1]), 0.5)
    at, size, pen = at / part_2[axis] * pixels, max(image.size) / 22, ImageDraw.Draw(picture)
    for edge, tip in ((0, size), (across - 1, across - 1 - size)):
        arrow = [(edge, at - size / 1.7), (edge, at + size / 1.7), (tip, at)]
        pen.polygon([(x, y) if axis == 0 else (y, x) for x, y in arrow], fill=_MARK)
    return picture


def corner_heat(
    image: Image.Image,
    y_R: np.ndarray,
    x_R: np.ndarray,
    part_2: tuple[float, float],
    point: tuple[float, float],
    box: Box | None = None,
) -> Image.Image:
    """The product of both distributions; a ring around the chosen (y, x), in canvas heights and widths, and the box."""
    y_H, x_W = _smeared(y_R, image.height, part_2[0]), _smeared(x_R, image.width, part_2[1])
    picture = heat(image, np.outer(y_H, x_W), 0.5)
    if box is not None:
        outline(picture, box)
    at_y, at_x = point[0] / part_2[0] * image.height, point[1] / part_2[1] * image.width
    radius, line = max(image.size) / 36, max(2, round(max(image.size) / 240))
    ring = (at_x - radius, at_y - radius, at_x + radius, at_y + radius)
    ImageDraw.Draw(picture).ellipse(ring, outline=_MARK, width=line)
    return picture


def attention_heat(
    image: Image.Image, map_HW: np.ndarray, part_2: tuple[float, float], box: Box | None = None, full: float = 0.0
) -> Image.Image:
    """A map over the cells of the canvas, smoothly enlarged, and the box; `full` is as in `heat`."""
    height, width = (cells * part for cells, part in zip(map_HW.shape, part_2, strict=True))
    cells = Image.fromarray(map_HW[: math.ceil(height), : math.ceil(width)].astype(np.float32))
    fine_HW = np.asarray(cells.resize(image.size, Image.Resampling.BICUBIC, box=(0, 0, width, height)))
    picture = heat(image, fine_HW.clip(0), 1.0, full)
    if box is not None:
        outline(picture, box)
    return picture


def point_heat(
    image: Image.Image, places_VN2: np.ndarray, weights_VN: np.ndarray, box: Box | None = None
) -> Image.Image:
    """Points of several maps, a colour a map (`DOTS`), with an area that goes with their weights, and the box.

    Args:
        image: the photograph, as large as the picture shall be.
        places_VN2: x and y in fractions of the image; points beyond its edge can't be seen.
        weights_VN: how much is taken of each; dots are smaller where the points lie close together.
        box: in fractions of the image.
    """
    picture = Image.fromarray(_dimmed(image).round().astype(np.uint8))
    if box is not None:
        outline(picture, box)
    fine = picture.resize((picture.width * _FINE, picture.height * _FINE), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(fine)
    most, apart = max(float(weights_VN.max(initial=0)), 1e-30), float((places_VN2 * fine.size).std((0, 1)).mean())
    largest = min(max(0.3 * apart, max(fine.size) / 110), max(fine.size) / 40)
    for v, n in zip(*np.unravel_index(np.argsort(-weights_VN, axis=None), weights_VN.shape), strict=True):
        x, y = places_VN2[v, n] * fine.size
        radius = max(largest * math.sqrt(weights_VN[v, n] / most), _FINE)
        spot = (x - radius, y - radius, x + radius, y + radius)
        pen.ellipse(spot, fill=DOTS[v % len(DOTS)], outline="black", width=_FINE // 2)
    return fine.resize(picture.size, Image.Resampling.BOX)


def pin(picture: Image.Image, point: tuple[float, float]) -> None:
    """Draw a cross, whose middle is open, at (x, y) in fractions of the picture."""
    x, y = (at * length for at, length in zip(point, picture.size, strict=True))
    near, far, pen = max(picture.size) / 90, max(picture.size) / 28, ImageDraw.Draw(picture)
    for colour, width in (("black", 5), (_MARK, 2)):
        for way in (-1, 1):
            pen.line((x + way * near, y, x + way * far, y), fill=colour, width=width)
            pen.line((x, y + way * near, x, y + way * far), fill=colour, width=width)


def heat(image: Image.Image, map_HW: np.ndarray, power: float, full: float = 0.0) -> Image.Image:
    """The dimmed image with the map on it, from transparent (0) to bright (the greatest value, if it is at least
    `full`).

    Args:
        image: the photograph.
        map_HW: not negative, of the same size.
        power: of the value that brightness goes with; under 1, faint alternatives can be seen as well.
    """
    photo_HW3 = _dimmed(image)
    level_HW = (map_HW / max(float(map_HW.max()), full, 1e-30)) ** power
    colours_HW3 = _COLOURS[(level_HW * 255).round().astype(int)]
    cover_HW1 = (level_HW * 1.3).clip(0, 0.92)[..., None]
    return Image.fromarray((photo_HW3 * (1 - cover_HW1) + colours_HW3 * cover_HW1).round().astype(np.uint8))


def _dimmed(image: Image.Image) -> np.ndarray:
    """The photograph with less colour and light, (H, W, 3) float."""
    photo_HW3 = np.asarray(image, np.float32)
    grey_HW1 = photo_HW3.mean(-1, keepdims=True)
    return (photo_HW3 * _COLOURFUL + grey_HW1 * (1 - _COLOURFUL)) * _BRIGHT


def outline(picture: Image.Image, box: Box) -> None:
    """Draw a box, given in fractions of the picture, thinly onto it."""
    x1, y1, x2, y2 = (side * length for side, length in zip(box, picture.size * 2, strict=True))
    corners = (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
    ImageDraw.Draw(picture).rectangle(corners, outline=_MARK, width=max(2, round(max(picture.size) / 300)))


def _smeared(bins_R: np.ndarray, pixels: int, part: float) -> np.ndarray:
    return gaussian_filter1d(spread(bins_R, pixels, part), max(1.0, _SMEAR * pixels))

"""Decode any image file as RGB, and resize an image to the square canvas.

For the whole library: the EXIF orientation is applied; transparency is put on white, as viewers show it; 16-bit grey is
divided by 257; an animation or multi-page file is its first frame.
"""

from __future__ import annotations

import math
import threading
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from boxwright.config import UserError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})
MAX_PIXELS = 2**28  # 1 GB once decoded, 16,000 pixels square; larger JPEGs are allowed where they are decoded reduced
HUGE = 2**25  # pixels; images over it are decoded one at a time, since each may take gigabytes
_BAND = 2**20  # pixels; larger images are converted and averaged down in bands of this size, to take little memory
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = frozenset(_TURNS[value] for value in (5, 6, 7, 8))  # these exchange width and height
_FROM_THE_END = frozenset(_TURNS[value] for value in (3, 4, 7, 8))  # the last row or column is displayed at the top
_one_at_a_time = threading.Lock()


def open_image(path: Path, side: int | None = None) -> Image.Image:
    """Decode an image as displayed, in mode RGB.

    Args:
        path: a file of any format Pillow reads, of any mode (CMYK, palette, 16-bit, float, with transparency...).
        side: of the canvas that the image will be resized to, in pixels. A JPEG of at least four times this size is
            then decoded at a half, a quarter or an eighth, never under twice `side`, which saves time and memory and
            changes the resized image by less than one grey level on average.

    Raises:
        UserError: the file is missing, empty, cut short, not an image, or larger than `MAX_PIXELS`.
    """
    try:
        with open_lazily(path) as image:
            return upright(image, side)
    except Exception as error:  # Pillow's format plugins raise anything: OSError, SyntaxError, IndexError...
        raise _unreadable(path, error) from error


def in_turn(width: int, height: int) -> AbstractContextManager[Any]:
    """A context in which an image of this size is the only `HUGE` one that is decoded."""
    return _one_at_a_time if width * height > HUGE else nullcontext()


def image_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels as displayed, from the file's header alone.

    Raises:
        UserError: the file is missing, empty or not an image.
    """
    try:
        with open_lazily(path) as image:
            return displayed_size(image)
    except Exception as error:  # see open_image
        raise _unreadable(path, error) from error


def upright(image: Image.Image, side: int | None = None, gap: int | None = None) -> Image.Image:
    """Decode a lazily opened image as displayed, in mode RGB; `open_image` does it with clear errors.

    Args:
        image: as `open_lazily` gives it.
        side: as in `open_image`.
        gap: a larger image is averaged down, to no less than this many times `side`; None leaves it whole.

    Raises:
        UserError: larger than `MAX_PIXELS`.
        Exception: of any type, if Pillow cannot decode it.
    """
    turn = _turn(image)
    if side is not None:
        _decode_reduced(image, side)
    if image.width * image.height > MAX_PIXELS:
        raise UserError(f"it has {image.width} x {image.height} pixels, and {MAX_PIXELS:,} are the limit")
    image.load()
    return _converted(image, turn, reduction(image.size, gap * side) if side and gap else 1)


def reduction(size: tuple[int, int], least: int) -> int:
    """By which whole number an image of this size can be divided so that its longer side keeps `least` pixels."""
    return max(1, max(size) // least)


def displayed_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of a lazily opened image as displayed."""
    return image.size[::-1] if _turn(image) in _SIDEWAYS else image.size


def same_shape(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes (width, height) may be of the same image: their aspect ratios agree, up to rounding."""
    ratio = (one[0] * other[1]) / max(1, one[1] * other[0])
    return abs(ratio - 1) <= 0.02 + 1.5 / max(1, min(one))


def fitted_size(height: int, width: int, canvas: tuple[int, int]) -> tuple[int, int]:
    """Height and width of an image resized to touch a canvas of this height and width, its aspect kept.

    Computed in float32 and rounded half to even, as TensorFlow's `resize` does.
    """
    size_2 = np.array([height, width], np.float32)
    fitted_2 = np.rint(size_2 * (np.array(canvas, np.float32) / size_2).min())
    return max(1, int(fitted_2[0])), max(1, int(fitted_2[1]))


def fit(image: Image.Image, side: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Resize an RGB image to touch the canvas, its aspect kept, at the top left; the rest of the canvas is zero.

    Bilinear with antialiasing. A small image is enlarged; no side gets shorter than one pixel.

    Returns:
        The canvas, (side, side, 3) uint8, and (height, width) of the valid area.
    """
    height, width = fitted_size(image.height, image.width, (side, side))
    canvas_SS3 = np.zeros((side, side, 3), np.uint8)
    resized = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=3.0)
    canvas_SS3[:height, :width] = np.asarray(resized)
    return canvas_SS3, (height, width)


def open_lazily(source: Path | BinaryIO, formats: tuple[str, ...] | None = None) -> Image.Image:
    """Pillow's lazy image. Its limit of pixels, a global variable, is off here; `upright` has a limit instead.

    Args:
        source: a path, or the bytes of a file.
        formats: as Pillow names them; by default all that it reads.
    """
    with _without_limit:
        return Image.open(source, formats=formats)


class _WithoutLimit:
    """A context without Pillow's limit of pixels. Many threads may be in it at once, and none waits for another."""

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, Image.MAX_IMAGE_PIXELS

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                Image.MAX_IMAGE_PIXELS = self._before


_without_limit = _WithoutLimit()


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How to turn the stored image upright, from the header only (`PngImageFile.getexif` would decode the image)."""
    if image.format == "TIFF":  # Pillow turns these itself
        return None
    try:
        return _TURNS.get(Image.Image.getexif(image).get(_ORIENTATION, 1))
    except Exception:  # EXIF is damaged, but the pixels may be fine
        return None


def _decode_reduced(image: Image.Image, side: int) -> None:
    """Ask the JPEG decoder for a reduced image of at least twice the canvas; other formats ignore it."""
    scale = min(1.0, 2 * side / max(image.size))
    image.draft(None, (math.ceil(image.width * scale), math.ceil(image.height * scale)))


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB; see the top of this file for transparency and 16-bit grey."""
    return _converted(image, None, 1)


def _converted(image: Image.Image, turn: Image.Transpose | None, factor: int) -> Image.Image:
    """An image in RGB, turned upright, averaged over squares of `factor` pixels."""
    grey = _grey_range(image) if image.mode in ("I", "F") else (0.0, 0.0)
    width, height = image.size[::-1] if turn in _SIDEWAYS else image.size
    if width * height <= _BAND or (factor == 1 and turn is None and image.mode == "RGB"):
        return _convert_band(image, grey, turn, factor)
    rgb = Image.new("RGB", (math.ceil(width / factor), math.ceil(height / factor)))
    rows = max(1, _BAND // (width * factor)) * factor
    for top in range(0, height, rows):
        band = image.crop(_stored_rows(image, turn, top, min(top + rows, height)))
        rgb.paste(_convert_band(band, grey, turn, factor), (0, top // factor))
    return rgb


def _stored_rows(image: Image.Image, turn: Image.Transpose | None, top: int, bottom: int) -> tuple[int, int, int, int]:
    """The part of a stored image that is displayed in these rows, once it is turned."""
    if turn in _FROM_THE_END:
        length = image.width if turn in _SIDEWAYS else image.height
        top, bottom = length - bottom, length - top
    return (top, 0, bottom, image.height) if turn in _SIDEWAYS else (0, top, image.width, bottom)


def _convert_band(
    image: Image.Image, grey: tuple[float, float], turn: Image.Transpose | None, factor: int
) -> Image.Image:
    rgb = _convert(image, grey)
    rgb = rgb.transpose(turn) if turn is not None else rgb
    return rgb.reduce(factor) if factor > 1 else rgb


def _convert(image: Image.Image, grey: tuple[float, float]) -> Image.Image:
    """An image in RGB; `grey` as in `_grey_range`."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.uint16) / 257).round().astype(np.uint8))
    elif image.mode in ("I", "F"):
        low, span = grey
        image = Image.fromarray(((_finite(image) - low) * (255 / span)).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _grey_range(image: Image.Image) -> tuple[float, float]:
    """The value that is black in an image of 32-bit grey levels, and how much more is white.

    The range is the first of 0 to 1 (for floats), 0 to 255 and 0 to 65535 that holds all values, else that from the
    least to the greatest value.
    """
    low, high, whole = math.inf, -math.inf, True
    rows = max(1, _BAND // max(1, image.width))
    for top in range(0, image.height, rows):
        values_HW = _finite(image.crop((0, top, image.width, min(top + rows, image.height))))
        low, high = min(low, float(values_HW.min())), max(high, float(values_HW.max()))
        whole = whole and bool(np.all(values_HW == values_HW.round()))
    ranges = (255, 65535) if whole and high > 1 else (1, 255, 65535)
    full = next((full for full in ranges if low >= 0 and high <= full), None)
    return (low, (high - low) or 1.0) if full is None else (0.0, float(full))


def _finite(image: Image.Image) -> np.ndarray:
    """32-bit grey levels (H, W) as float64; NaN and infinity become 0."""
    return np.nan_to_num(np.asarray(image).astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)


def _unreadable(path: Path, error: Exception) -> UserError:
    if isinstance(error, FileNotFoundError):
        what = "the file is missing"
    elif isinstance(error, OSError) and path.is_file() and path.stat().st_size == 0:
        what = "the file is empty"
    else:
        what = reason(error)
    return UserError(f"{path}: cannot be read as an image: {what}.")


def reason(error: Exception) -> str:
    """Why Pillow could not decode an image."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image, or of an unknown format"
    return str(error) or type(error).__name__

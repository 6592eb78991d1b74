"""Decode any image file as RGB, and resize an image to the square canvas.

For the whole library: the EXIF orientation is applied; transparency is put on white, as viewers show it; an animation
or multi-page file is its first frame.

Pixels of over 8 bits are stretched from the range of 0 to the greatest number of 8, 10, 12, 14 or 16 bits, the least
that holds all values of the image: cameras store 12 bits in 16, and a picture divided by 257 would be nearly black. So
zero stays black, and images of one camera have one range unless they are under a quarter as bright as it. Stretching
from the darkest to the brightest pixel would instead turn the noise of an empty image into contrast.
"""

from __future__ import annotations

import math
import threading
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from boxwright.config import UserError
from boxwright.files import PackedFile, is_file

_ENDINGS = """
jpg jpeg jpe jfif mpo png apng bmp dib webp tif tiff gif ppm pgm pbm pnm pfm jp2 j2k j2c jpc jpf jpx avif avifs heic
heif hif tga pcx sgi qoi
"""
IMAGE_SUFFIXES = frozenset(f".{ending}" for ending in _ENDINGS.split())
MAX_PIXELS = 2**28  # 1 GB once decoded, 16,000 pixels square; larger JPEGs are allowed where they are decoded reduced
HUGE = 2**25  # pixels; images over it are decoded one at a time, since each may take gigabytes
_BAND = 2**20  # pixels; larger images are converted and averaged down in bands of this size, to take little memory
_DEPTHS = (255, 1023, 4095, 16383, 65535)  # the greatest numbers of 8, 10, 12, 14 and 16 bits
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
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


def open_image(path: Path | PackedFile, side: int | None = None) -> Image.Image:
    """Decode an image as displayed, in mode RGB.

    Args:
        path: a file of any format Pillow reads, of any mode (CMYK, palette, 16-bit, float, with transparency...).
        side: of the canvas that the image will be resized to, in pixels. A JPEG of at least four times this size is
            then decoded at a half, a quarter or an eighth, never under twice `side`, which saves time and memory and
            changes the resized image by less than one grey level on average.

    Raises:
        UserError: the file is missing, empty, cut short, not an image, or larger than `MAX_PIXELS`.
    """
    source = path.open() if isinstance(path, PackedFile) else path
    try:
        with open_lazily(source) as image:
            return upright(image, side)
    except Exception as error:  # Pillow's format plugins raise anything: OSError, SyntaxError, IndexError...
        raise _unreadable(path, error) from error


def in_turn(width: int, height: int) -> AbstractContextManager[Any]:
    """A context in which an image of this size is the only `HUGE` one that is decoded."""
    return _one_at_a_time if width * height > HUGE else nullcontext()


def image_size(path: Path | PackedFile) -> tuple[int, int]:
    """Width and height in pixels as displayed, from the file's header alone.

    Raises:
        UserError: the file is missing, empty or not an image.
    """
    source = path.open() if isinstance(path, PackedFile) else path
    try:
        with open_lazily(source) as image:
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
    return _converted(_loaded(image), turn, reduction(image.size, gap * side) if side and gap else 1)


def displayed(image: Image.Image) -> Image.Image:
    """An image of any mode in RGB, turned as its EXIF says, whether it is decoded yet or not."""
    turn = _turn(image)
    return _converted(_loaded(image), turn, 1)


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


@cache
def image_formats() -> tuple[str, ...]:
    """Pillow's names of the formats of `IMAGE_SUFFIXES` that it reads: none starts a program or opens a file."""
    Image.init()
    kinds = {kind for ending, kind in Image.registered_extensions().items() if ending in IMAGE_SUFFIXES}
    return tuple(sorted(kinds & set(Image.OPEN)))


def open_lazily(source: Path | BinaryIO, formats: tuple[str, ...] | None = None) -> Image.Image:
    """Pillow's lazy image. Its limit of pixels, a global variable, is off here; `upright` has a limit instead.

    Args:
        source: a path, or the bytes of a file.
        formats: as Pillow names them, and HEIC with them; by default all that it reads.
    """
    if isinstance(source, Path) and not source.is_file() and source.exists():
        raise OSError("it is not a file")  # but a folder, or a FIFO, which would keep us waiting
    with _without_limit:
        return _open(source, formats)


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


def _open(source: Path | BinaryIO, formats: tuple[str, ...] | None) -> Image.Image:
    """Pillow's lazy image. The plugin for HEIC is imported when the first such file is met, whatever its ending."""
    try:
        return Image.open(source, formats=formats)
    except Image.UnidentifiedImageError:
        if not _is_heif(source):
            raise
    try:
        import pillow_heif  # type: ignore[import-not-found] - optional
    except ModuleNotFoundError:
        how = "python -m pip install pillow-heif brings it"
        raise UserError(f"HEIC needs pillow-heif, which is not installed: {how}") from None
    pillow_heif.register_heif_opener()
    return Image.open(source, formats=None if formats is None else ("HEIF",))


def _is_heif(source: Path | BinaryIO) -> bool:
    with source.open("rb") if isinstance(source, Path) else nullcontext(source) as stream:
        stream.seek(0)
        head = stream.read(12)
        stream.seek(0)
    return head[4:8] == b"ftyp" and head[8:] in _HEIF_BRANDS


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


def _converted(image: Image.Image, turn: Image.Transpose | None, factor: int) -> Image.Image:
    """An image in RGB, turned upright, averaged over squares of `factor` pixels."""
    grey = _grey_range(image) if _is_deep_grey(image) else (0.0, 0.0)
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
    if _is_deep_grey(image):
        low, span = grey
        image = Image.fromarray(((_finite(image) - low) * (255 / span)).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _is_deep_grey(image: Image.Image) -> bool:
    return image.mode.startswith("I;16") or image.mode in ("I", "F")


def _grey_range(image: Image.Image) -> tuple[float, float]:
    """The value that is black in an image of deep grey, and how much more is white.

    The range is the first of 0 to 1 (of numbers of 32 bits) and of `_DEPTHS` that holds all values, else that from the
    least to the greatest value.
    """
    low, high = math.inf, -math.inf
    rows = max(1, _BAND // max(1, image.width))
    for top in range(0, image.height, rows):
        values_HW = _finite(image.crop((0, top, image.width, min(top + rows, image.height))))
        low, high = min(low, float(values_HW.min())), max(high, float(values_HW.max()))
    if low < 0 or high > _DEPTHS[-1]:
        return low, (high - low) or 1.0
    return 0.0, 1.0 if high <= 1 and image.mode in ("I", "F") else float(_range_of(high))


def _range_of(high: float) -> int:
    """The greatest number of the fewest bits that hold a number."""
    return next(full for full in _DEPTHS if high <= full)


def _finite(image: Image.Image) -> np.ndarray:
    """Levels of deep grey (H, W) as float64; NaN and infinity become 0."""
    return np.nan_to_num(np.asarray(image).astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)


def _loaded(image: Image.Image) -> Image.Image:
    """The image, decoded. Of colour with 16 bits a channel Pillow keeps the upper 8, which are stretched as grey is."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    raw_mode = arguments if isinstance(arguments, str) else str(arguments[0]) if arguments else ""
    image.load()
    return _stretch_colour(image) if ";16" in raw_mode and not _is_deep_grey(image) else image


def _stretch_colour(image: Image.Image) -> Image.Image:
    """A decoded image of deep colour, its channels, but not its transparency, stretched as grey of 16 bits is."""
    is_colour = [channel != "A" for channel in image.getbands()]
    highest = int(np.asarray(image)[..., is_colour].max())
    full = _range_of(257 * highest) // 256
    if full == 255:
        return image
    table = [min(255, round(level * 255 / max(1, full))) for level in range(256)]
    return image.point([value for colour in is_colour for value in (table if colour else range(256))])


def _unreadable(path: Path | PackedFile, error: Exception) -> UserError:
    if isinstance(error, FileNotFoundError):
        what = "the file is missing"
    elif isinstance(error, OSError) and is_file(path) and _is_empty(path):
        what = "the file is empty"
    else:
        what = reason(error)
    return UserError(f"{path}: cannot be read as an image: {what}.")


def _is_empty(path: Path | PackedFile) -> bool:
    return not path.read_bytes() if isinstance(path, PackedFile) else path.stat().st_size == 0


def reason(error: Exception) -> str:
    """Why Pillow could not decode an image."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image, or of an unknown format"
    return str(error) or type(error).__name__

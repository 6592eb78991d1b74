"""What may be given as an image, and how it becomes one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np
from PIL import Image

from boxwright.config import UserError, require
from boxwright.files import PackedFile, as_location
from boxwright.images import displayed, image_size, in_turn, open_image, reduction

if TYPE_CHECKING:
    from torch import Tensor  # taken only by the predictor of a checkpoint

ImageInput: TypeAlias = "str | Path | bytes | BinaryIO | Image.Image | np.ndarray | Tensor"
TAKES = "a path, the bytes of a file, a file object, a PIL image or an array"
GAP = 3  # as in `boxwright.images.fit`: averaging down to this many times the canvas changes nothing one could see


@dataclass
class DecodedImage:
    """A decoded image and its size (width, height) before any reduction."""

    image: Image.Image
    size: tuple[int, int]


def decode(image: Any, side: int, takes: str = TAKES) -> DecodedImage:
    """Any image in mode RGB; a large one reduced, to no less than three times the canvas (a JPEG to twice).

    Args:
        image: a path, the bytes of a file, a file object, a PIL image (turned as its EXIF says, as a file is), or an
            array (H, W, 3) uint8 in RGB order.
        side: of the canvas that it will be fitted into, in pixels.
        takes: what may be given, for errors.

    Raises:
        UserError: if it is none of these, cannot be read, or has no pixels.
    """
    if (path := _file(image)) is not None:
        size = image_size(path)
        with in_turn(*size):
            return DecodedImage(reduced(open_image(path, side), side), size)
    rgb = displayed(image) if isinstance(image, Image.Image) else _from_array(image, takes)
    require(min(rgb.size), f"an image must have pixels, not {rgb.width} x {rgb.height}.")
    return DecodedImage(reduced(rgb, side), rgb.size)


def whole(image: Any) -> Image.Image:
    """An image in any of the forms that `decode` takes, as displayed, in mode RGB and whole."""
    if (path := _file(image)) is not None:
        return open_image(path)
    return displayed(image) if isinstance(image, Image.Image) else _from_array(image, TAKES)


def kept(image: Any) -> Any:
    """The image in a form that `whole` takes later, too: of a file object, its bytes."""
    return _file(image) if hasattr(image, "read") else image


def _file(image: Any) -> Path | PackedFile | None:
    """The file that is given, by its path, bytes or object; None where none is."""
    if isinstance(image, PackedFile):
        return image.held()
    if isinstance(image, bytes | bytearray | memoryview):
        return PackedFile.of_bytes(bytes(image), "the bytes given")
    if hasattr(image, "read"):
        data = image.read()
        require(isinstance(data, bytes), f"{image} must be opened for reading bytes: open(file, 'rb').")
        return PackedFile.of_bytes(data, str(getattr(image, "name", "the file given")))
    if not isinstance(image, str | os.PathLike):
        return None
    place = as_location(Path(os.fspath(image)))
    if isinstance(place, str):
        how = "urllib.request.urlopen(...).read()"
        raise UserError(f"{place} is a URL, which is not fetched here; give the bytes: {how}.")
    require(not place.expanduser().is_dir(), f"{place} is a folder; `stream` goes through all images in it.")
    return place.expanduser()


def reduced(image: Image.Image, side: int) -> Image.Image:
    """The image, averaged down where it is far larger than the canvas, so that waiting images take little memory."""
    factor = reduction(image.size, GAP * side)
    return image.reduce(factor) if factor > 1 else image


def _from_array(array: Any, takes: str) -> Image.Image:
    require(isinstance(array, np.ndarray), f"an image must be {takes}, not {type(array)}.")
    require(
        array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8,
        f"an array must be (H, W, 3) of uint8, RGB, not {array.shape} of {array.dtype}; give several as a list.",
    )
    return Image.fromarray(array)

"""What may be given as an image, and how it becomes one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image

from boxwright.config import require
from boxwright.files import PackedFile
from boxwright.images import displayed, image_size, in_turn, open_image, reduction

if TYPE_CHECKING:
    from torch import Tensor  # taken only by the predictor of a checkpoint

ImageInput: TypeAlias = "str | Path | Image.Image | np.ndarray | Tensor"
TAKES = "a path, PIL image or array"
GAP = 3  # as in `boxwright.images.fit`: averaging down to this many times the canvas changes nothing one could see


@dataclass
class DecodedImage:
    """A decoded image and its size (width, height) before any reduction."""

    image: Image.Image
    size: tuple[int, int]


def decode(image: Any, side: int, takes: str = TAKES) -> DecodedImage:
    """Any image in mode RGB; a large one reduced, to no less than three times the canvas (a JPEG to twice).

    Args:
        image: a path, a PIL image (turned as its EXIF says, as a path is), or an array (H, W, 3) uint8 in RGB order.
        side: of the canvas that it will be fitted into, in pixels.
        takes: what may be given, for errors.

    Raises:
        UserError: if it is none of these, cannot be read, or has no pixels.
    """
    if isinstance(image, str | Path | PackedFile):
        path = image.held() if isinstance(image, PackedFile) else Path(image).expanduser()
        is_folder = isinstance(path, Path) and path.is_dir()
        require(not is_folder, f"{path} is a folder; `stream` goes through all images in it.")
        size = image_size(path)
        with in_turn(*size):
            return DecodedImage(reduced(open_image(path, side), side), size)
    rgb = displayed(image) if isinstance(image, Image.Image) else _from_array(image, takes)
    require(min(rgb.size), f"an image must have pixels, not {rgb.width} x {rgb.height}.")
    return DecodedImage(reduced(rgb, side), rgb.size)


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

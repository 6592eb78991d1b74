"""What may be given as an image, and how it becomes one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from boxwright.config import require
from boxwright.images import image_size, in_turn, open_image, to_rgb

Picture: TypeAlias = str | Path | Image.Image | np.ndarray
TAKES = "a path, PIL image or array"
_GAP = 3  # as `boxwright.images.fit`: box averages down to this many times the canvas cannot be told


@dataclass
class DecodedImage:
    """A decoded image and its size (width, height) before any reduction."""

    image: Image.Image
    size: tuple[int, int]


def decode(picture: Any, side: int, takes: str = TAKES) -> DecodedImage:
    """Any image in mode RGB; a large one reduced, to no less than three times the canvas (a JPEG to twice).

    Args:
        picture: a path, a PIL image, or an array (H, W, 3) uint8 in RGB order.
        side: of the canvas it is going to be fitted into, in pixels.
        takes: what may be given, for errors.

    Raises:
        UserError: if it is none of these, cannot be read, or has no pixels.
    """
    if isinstance(picture, str | Path):
        path = Path(picture).expanduser()
        require(not path.is_dir(), f"{path} is a folder; `stream` goes through all images in it.")
        size = image_size(path)
        with in_turn(*size):
            return DecodedImage(reduced(open_image(path, side), side), size)
    image = to_rgb(picture) if isinstance(picture, Image.Image) else _from_array(picture, takes)
    require(min(image.size), f"an image must have pixels, not {image.width} x {image.height}.")
    return DecodedImage(reduced(image, side), image.size)


def reduced(image: Image.Image, side: int) -> Image.Image:
    """So that what waits takes little memory, however large the images are that are given."""
    factor = max(image.size) // (_GAP * side)
    return image.reduce(factor) if factor > 1 else image


def _from_array(picture: Any, takes: str) -> Image.Image:
    require(isinstance(picture, np.ndarray), f"an image must be {takes}, not {type(picture)}.")
    require(
        picture.ndim == 3 and picture.shape[2] == 3 and picture.dtype == np.uint8,
        f"an array must be (H, W, 3) of uint8, RGB, not {picture.shape} of {picture.dtype}; give several as a list.",
    )
    return Image.fromarray(picture)

"""What may be given as an image, and how it becomes one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from boxwright.config import require
from boxwright.data.images import image_size, open_image, to_rgb

Picture: TypeAlias = str | Path | Image.Image | np.ndarray


@dataclass
class Ready:
    """A decoded image and its size (width, height) before any reduction."""

    image: Image.Image
    size: tuple[int, int]


def decode(picture: Any, side: int) -> Ready:
    """Any image in mode RGB; a large JPEG reduced, though never under twice the canvas (`boxwright.data.images`).

    Args:
        picture: a path, a PIL image, or an array (H, W, 3) uint8 in RGB order.
        side: of the canvas it is going to be fitted into, in pixels.

    Raises:
        UserError: if it is none of these, cannot be read, or has no pixels.
    """
    if isinstance(picture, str | Path):
        path = Path(picture)
        return Ready(open_image(path, side), image_size(path))
    image = to_rgb(picture) if isinstance(picture, Image.Image) else _from_array(picture)
    require(min(image.size), f"an image must have pixels, not {image.width} x {image.height}.")
    return Ready(image, image.size)


def _from_array(picture: Any) -> Image.Image:
    kinds = "a path, PIL image, array or tensor"
    require(isinstance(picture, np.ndarray), f"an image must be {kinds}, not {type(picture)}.")
    require(
        picture.ndim == 3 and picture.shape[2] == 3 and picture.dtype == np.uint8,
        f"an array must be (H, W, 3) of uint8, RGB, not {picture.shape} of {picture.dtype}; give several as a list.",
    )
    return Image.fromarray(picture)

"""An uploaded image, which may be anything, as the detector takes it."""

from __future__ import annotations

import base64
import io

from boxwright.deployment.service.errors import Refused
from boxwright.images import displayed_size, open_lazily, reason, upright
from boxwright.runtime.inputs import DecodedImage, reduced

# Of the formats that Pillow reads, those without programs to start or other files to open.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")


def decode(data: bytes, name: str, side: int, most_pixels: int) -> DecodedImage:
    """An uploaded image in mode RGB, upright; a large one reduced, to no less than three times the canvas.

    Args:
        data: a file of one of the `FORMATS`; of an animation the first frame counts.
        name: what the caller calls it, for errors.
        side: of the canvas that it is going to be fitted into, in pixels.
        most_pixels: that its header may speak of; nothing is decoded of more.

    Raises:
        Refused: if it has more, is no such file, cut short or damaged.
    """
    try:
        with open_lazily(io.BytesIO(data), FORMATS) as image:
            if image.width * image.height > most_pixels:
                said = f"{image.width} x {image.height} pixels, and {most_pixels:,} are the limit"
                raise Refused(413, f"{name} has {said}; send a smaller one.")
            size = displayed_size(image)
            return DecodedImage(reduced(upright(image, side), side), size)
    except Refused:
        raise
    except Exception as error:  # see `boxwright.images.open_image`
        why = reason(error) if data else "it is empty"
        raise Refused(400, f"{name} cannot be read as an image: {why}.") from error


def from_base64(text: str, name: str) -> bytes:
    """The bytes that base64 stands for; `Refused` where it is none."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        said = f"{name} is not base64 (the plain kind, without line breaks or 'data:...' before it)."
        raise Refused(400, said) from None

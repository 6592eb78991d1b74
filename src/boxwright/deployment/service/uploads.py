"""Decode uploaded images, which may be anything. The process that decodes imports this, so it imports little."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable

from boxwright.deployment.service.limits import RequestError
from boxwright.images import displayed_size, image_formats, open_lazily, reason, upright
from boxwright.runtime.inputs import GAP, DecodedImage

_MOST_SCANS = 100  # of a JPEG; programs write about ten, and each takes as long as the whole image


def decode(
    data: bytes, name: str, side: int, most_pixels: int, opened: Callable[[int], None] = lambda pixels: None
) -> DecodedImage:
    """An uploaded image in mode RGB, upright; a large one reduced, to no less than three times the canvas.

    Args:
        data: a file of any format in `image_formats`; the first frame of an animation counts.
        name: the caller's name for it, for errors.
        side: of the canvas that it will be fitted into, in pixels.
        most_pixels: the largest image, by its header; nothing of a larger one is decoded.
        opened: called with the number of pixels, when the header is read.

    Raises:
        RequestError: if it is larger, is no such file, cut short or damaged.
        MemoryError: if there is not enough memory.
    """
    try:
        with open_lazily(io.BytesIO(data), image_formats()) as image:
            if image.width * image.height > most_pixels:
                pixels = f"{image.width} x {image.height} pixels, and {most_pixels:,} are the limit"
                raise RequestError(413, f"{name} has {pixels}; send a smaller one.")
            _check_scans(data, name)
            opened(image.width * image.height)
            size = displayed_size(image)
            return DecodedImage(upright(image, side, GAP), size)
    except (RequestError, MemoryError):
        raise
    except Exception as error:  # see `boxwright.images.open_image`
        why = reason(error) if data else "it is empty"
        raise RequestError(400, f"{name} cannot be read as an image: {why}.") from error


def _check_scans(data: bytes, name: str) -> None:
    """Refuse a JPEG of very many scans; in its data, no other bytes look like the marker of a scan."""
    if data.startswith(b"\xff\xd8") and data.count(b"\xff\xda") > _MOST_SCANS:
        raise RequestError(413, f"{name} has over {_MOST_SCANS} scans; send it as an ordinary JPEG or PNG.")


def from_base64(text: str, name: str) -> bytes:
    """The bytes that base64 text encodes; `RequestError` if it doesn't."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        message = f"{name} is not base64 (the plain kind, without line breaks or 'data:...' before it)."
        raise RequestError(400, message) from None

"""Files to send."""

import io
from typing import Any

from PIL import Image


def picture(size=(96, 64), box=(10, 20, 40, 50), kind="png", **how: Any) -> bytes:
    """A dark image with a white box, as a file."""
    image, file = Image.new("RGB", size, (20, 30, 40)), io.BytesIO()
    image.paste("white", box)
    image.save(file, kind, **how)
    return file.getvalue()

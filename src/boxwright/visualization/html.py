"""Pages of one HTML file with their images inside, from templates that lie beside the modules that fill them."""

import base64
import io
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from boxwright import __version__
from boxwright.drawing import text_colour
from boxwright.files import write_whole

_PACKAGE = Path(__file__).parents[1]


def write_page(path: Path, template: str, command: str = "", **values: Any) -> None:
    """Write a page, whole or not at all; its last line says what made it, when and how.

    Args:
        path: the HTML file.
        template: its file in this package, such as ``evaluation/report.html``.
        command: that repeats it.
        values: what the template shows; `title` is always among them. Text is escaped.

    Raises:
        UserError: if the page can't be written.
    """
    made = {
        "product": f"boxwright {__version__}",
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "command": command,
    }
    text = _templates().get_template(template).render(values | made)
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8", errors="backslashreplace"))


def image_address(image: Image.Image) -> str:
    """The address of an image that is part of the page, as JPEG."""
    stream = io.BytesIO()
    image.save(stream, format="jpeg", quality=82)
    return _data_address(stream.getvalue(), "jpeg")


def file_address(file: Path) -> str:
    """The address of a PNG or JPEG file's copy that is part of the page."""
    return _data_address(file.read_bytes(), "png" if file.suffix.lower() == ".png" else "jpeg")


def _data_address(content: bytes, image_format: str) -> str:
    return f"data:image/{image_format};base64,{base64.b64encode(content).decode()}"


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_PACKAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["text_colour"] = text_colour
    return environment

"""CreateML JSON: a list of images with their boxes, given by centre, width and height in pixels.

Source: https://developer.apple.com/documentation/createml/building-an-object-detector-data-source. A file cannot say
that it uses other units or another corner, which CreateML's interface allows; the defaults are read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from boxwright.data.formats.collection import AnnotatedImage, Collection
from boxwright.data.formats.shapes import MalformedError, center_box


def read(collection: Collection, file: Path, split: str) -> None:
    """Add the images of a file."""
    content = collection.load_json(file)
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        if content is not None:
            collection.parsed.add_fault("broken-file", file, "is no list of images")
        return
    for i, row in enumerate(content, 1):
        collection.attempt(f"{file}, record {i}", _read_image, collection, row, file, split)


def _read_image(collection: Collection, row: dict[str, Any], file: Path, split: str) -> None:
    name = next((row[key] for key in ("image", "imagefilename", "filename", "imageURL") if key in row), None)
    image = collection.new_image(name, file, split, f", image {name}")
    objects = next((row[key] for key in ("annotations", "annotation") if key in row), None)
    if not isinstance(objects, list):
        raise MalformedError("has no list `annotations`")
    for i, item in enumerate(objects, 1):
        collection.attempt(f"{image.source}, object {i}", _add, image, item, i)


def _add(image: AnnotatedImage, item: dict[str, Any], mark: int) -> None:
    box = center_box(item["coordinates"][key] for key in ("x", "y", "width", "height"))
    image.add(item["label"], box, mark)

"""labelme JSON: one file per image, with `shapes` in pixels and the image's name in `imagePath`.

Source: https://github.com/wkentaro/labelme (`labelme/label_file.py`, `shape.py`). A rectangle has two opposite
corners, a circle its centre and a point on it. Points and lines are no boxes. The picture that a file may carry in
`imageData` is not used; the image file is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from boxwright.data.formats.collection import AnnotatedImage, Collection, text_size
from boxwright.data.formats.shapes import Box, ellipse_box, numbers, polygon_box

_NO_BOX = {"point": "points", "points": "points", "line": "lines", "linestrip": "lines"}


def read(collection: Collection, file: Path, split: str) -> None:
    """Add the image of a file."""
    content = collection.load_json(file)
    if content is not None:
        collection.attempt(str(file), _read, collection, content, file, split)


def _read(collection: Collection, content: dict[str, Any], file: Path, split: str) -> None:
    shapes = content["shapes"]
    image = collection.new_image(content.get("imagePath") or file.stem, file, split)
    image.width, image.height = text_size(content, "imageWidth", "imageHeight")
    for i, shape in enumerate(shapes, 1):
        where = f"{file}, object {i}"
        kind = str(shape.get("shape_type")) if isinstance(shape, dict) else ""
        if kind in _NO_BOX:
            collection.leave_out(_NO_BOX[kind], where)
        else:
            collection.attempt(where, _add, image, shape, i)


def _add(image: AnnotatedImage, shape: dict[str, Any], mark: int) -> None:
    image.add(shape["label"], _box(shape), mark)


def _box(shape: dict[str, Any]) -> Box:
    points = shape["points"]
    if shape.get("shape_type") == "circle":
        (x, y), (u, v) = numbers(points[0], 2), numbers(points[1], 2)
        radius = ((x - u) ** 2 + (y - v) ** 2) ** 0.5
        return ellipse_box(x, y, radius, radius)
    return polygon_box(points)

"""VIA (VGG Image Annotator) 1 and 2: JSON of annotations, a project, or CSV; shapes in pixels.

Source: https://gitlab.com/vgg/via (`via-2.x.y/CodeDoc.md`). The class of a region is its attribute of a usual name
(`class`, `label`, `name`, `type`, ...), or else its only attribute. Of a group of check boxes the one that is ticked
counts.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from boxwright.data.formats.collection import AnnotatedImage, Collection
from boxwright.data.formats.shapes import Box, MalformedError, ellipse_box, number, points_box, size_box
from boxwright.data.parsed import read_text

_CLASS_KEYS = ("class", "label", "name", "type", "category", "object", "object_name", "class_name")
_NO_BOX = ("point", "polyline")


def read(collection: Collection, file: Path, split: str) -> None:
    """Add the images of a JSON file."""
    content = collection.load_json(file)
    if isinstance(content, dict):
        content = content.get("_via_img_metadata", content)
    if not isinstance(content, dict):
        if content is not None:
            collection.parsed.add_fault("broken-file", file, "is no annotation file of VIA")
        return
    for key, row in content.items():
        if not key.startswith("_via"):
            collection.attempt(f"{file}, {key!s:.100}", _read_image, collection, row, file, split)


def _read_image(collection: Collection, row: dict[str, Any], file: Path, split: str) -> None:
    image = collection.new_image(row["filename"], file, split, f", image {row['filename']}")
    regions = row["regions"]
    for i, region in enumerate(regions.values() if isinstance(regions, dict) else regions, 1):
        collection.attempt(f"{image.source}, object {i}", _add, collection, image, region, i)


def _add(collection: Collection, image: AnnotatedImage, region: dict[str, Any], mark: int) -> None:
    shape = region["shape_attributes"]
    if shape["name"] in _NO_BOX:
        collection.leave_out(f"{shape['name']}s", f"{image.source}, object {mark}")
    else:
        image.add(_label(region["region_attributes"]), _box(shape), mark)


def _label(attributes: dict[str, Any]) -> object:
    by_key = {key.lower(): value for key, value in attributes.items()}
    value = next((by_key[key] for key in _CLASS_KEYS if key in by_key), None)
    if value is None:
        if len(attributes) != 1:
            raise MalformedError(f"has {len(attributes)} attributes and none is called `class` or `label`")
        value = next(iter(attributes.values()))
    if isinstance(value, dict):
        ticked = [key for key, on in value.items() if on]
        if len(ticked) != 1:
            raise MalformedError(f"has {len(ticked)} classes ticked, not one")
        return ticked[0]
    return value


def _box(shape: dict[str, Any]) -> Box:
    if shape["name"] == "rect":
        return size_box(shape[key] for key in ("x", "y", "width", "height"))
    if shape["name"] == "circle":
        return ellipse_box(shape["cx"], shape["cy"], shape["r"], shape["r"])
    if shape["name"] == "ellipse":
        theta = shape.get("theta") or 0.0  # radians
        return ellipse_box(shape["cx"], shape["cy"], shape["rx"], shape["ry"], math.degrees(number(theta)))
    return points_box(shape["all_points_x"], shape["all_points_y"])


def read_csv(collection: Collection, file: Path, split: str) -> None:
    """Add the images of a CSV file; a row is a region, or an image without regions."""
    images: dict[str, AnnotatedImage] = {}
    for line, row in _rows(collection, file):
        where = f"{file}:{line}"
        name = str(row.get("filename") or row.get("#filename") or "").strip()
        if name not in images:
            image = collection.attempt(where, collection.new_image, name, file, split)
            if image is None:
                continue
            image.mark, images[name] = ":{}", image
        shape, attributes = (
            collection.parse_json(row.get(key) or "{}", where)
            for key in ("region_shape_attributes", "region_attributes")
        )
        if shape:
            region = {"shape_attributes": shape, "region_attributes": attributes}
            collection.attempt(where, _add, collection, images[name], region, line)


def _rows(collection: Collection, file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(read_text(file, collection.parsed) or ""))
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        collection.parsed.add_fault("broken-file", f"{file}:{reader.line_num}", f"is not valid CSV ({error})")

"""CVAT for images 1.1: one XML file of all images, with the list of labels in its `meta`.

Source: https://docs.cvat.ai/docs/manual/advanced/xml_format/. A turned box turns about its centre. `subset` of an
image is its split. Points, polylines, skeletons and tags are no boxes. "CVAT for video", with tracks, is refused by
name.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from boxwright.data.folders import split_name
from boxwright.data.formats.collection import AnnotatedImage, Collection, text_size
from boxwright.data.formats.shapes import (
    Box,
    ellipse_box,
    number,
    numbers,
    plain_box,
    points_box,
    polygon_box,
    runs_box,
    turned_box,
)
from boxwright.data.records import Record

_BOXES = ("box", "polygon", "ellipse", "mask", "cuboid")


def read(collection: Collection, file: Path, split: str) -> None:
    """Add the images of a file."""
    try:
        root = ET.parse(file).getroot()
    except ET.ParseError as error:
        reason = str(error).partition(":")[0]
        collection.parsed.add_fault("broken-file", f"{file}:{error.position[0]}", f"is not valid XML ({reason})")
        return
    except (OSError, LookupError, ValueError) as error:
        collection.parsed.add_fault("broken-file", file, f"cannot be read ({error})")
        return
    if root.find("track") is not None:
        what = "holds the tracks of a video; export it from CVAT as `CVAT for images`"
        collection.parsed.add_fault("broken-file", file, what)
        return
    labels = [(element.text or "").strip() for element in root.iterfind("meta//labels/label/name")]
    collection.declare(labels)
    for element in root.iterfind("image"):
        name = element.get("name")
        collection.attempt(f"{file}, image {name!s:.200}", _read_image, collection, element, file, split)


def _read_image(collection: Collection, element: ET.Element, file: Path, split: str) -> None:
    subset = element.get("subset") or ""
    split = split_name(subset) or (split if subset.lower() in ("", "default") else subset)
    image = collection.new_image(element.get("name"), file, split, f", image {element.get('name')}")
    image.width, image.height = text_size(dict(element.attrib))
    for i, shape in enumerate(element, 1):
        where = f"{image.source}, object {i}"
        if shape.tag in _BOXES:
            collection.attempt(where, _add, image, shape, i)
        elif shape.tag != "tag":
            collection.leave_out(f"objects of type {shape.tag}", where)


def _add(image: AnnotatedImage, shape: ET.Element, mark: int) -> None:
    ignore = any(
        child.get("name") in ("ignored", "difficult", "is_crowd") and (child.text or "").strip().lower() == "true"
        for child in shape.iterfind("attribute")
    )
    image.add(shape.get("label"), _box(shape), mark, ignore)


def _box(shape: ET.Element) -> Box:
    values, turn = shape.attrib, number(shape.get("rotation", 0))
    if shape.tag == "box":
        box = plain_box(values[key] for key in ("xtl", "ytl", "xbr", "ybr"))
        return turned_box(box, turn, ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)) if turn else box
    if shape.tag == "polygon":
        return polygon_box([point.split(",") for point in values["points"].split(";")])
    if shape.tag == "ellipse":
        return ellipse_box(values["cx"], values["cy"], values["rx"], values["ry"], turn)
    if shape.tag == "cuboid":
        corners = [key[1:] for key in values if re.fullmatch("x[tb][lr][12]", key)]
        return points_box([values[f"x{key}"] for key in corners], [values[f"y{key}"] for key in corners])
    left, top, width = numbers(values[key] for key in ("left", "top", "width"))
    runs = [int(number(run)) for run in values["rle"].split(",")]
    y1, x1, y2, x2 = runs_box(runs, int(width))  # CVAT's runs go along rows
    return left + x1, top + y1, left + x2, top + y2


def write(out: Path, split: str, records: Sequence[Record], image_names: Sequence[str], names: Sequence[str]) -> None:
    """Add the images of one split to `annotations.xml`, as its subset; ignored objects get an attribute `ignored`."""
    file = out / "annotations.xml"
    root = ET.parse(file).getroot() if file.is_file() else _empty(names)
    first = len(root.findall("image"))
    for i, (record, name) in enumerate(zip(records, image_names, strict=True), first):
        size = {"width": str(record.width), "height": str(record.height)}
        subset = {} if split == "all" else {"subset": split}
        image = ET.SubElement(root, "image", {"id": str(i), "name": name, **subset, **size})
        for box, label, ignore in zip(record.boxes_N4.tolist(), record.labels_N, record.ignore_N, strict=True):
            corners = dict(zip(("xtl", "ytl", "xbr", "ybr"), map(repr, box), strict=True))
            shape = ET.SubElement(image, "box", {"label": names[label], "source": "file", "occluded": "0", **corners})
            if ignore:
                ET.SubElement(shape, "attribute", {"name": "ignored"}).text = "true"
    ET.indent(root)
    ET.ElementTree(root).write(file, encoding="utf-8", xml_declaration=True)


def _empty(names: Sequence[str]) -> ET.Element:
    root = ET.Element("annotations")
    ET.SubElement(root, "version").text = "1.1"
    labels = ET.SubElement(ET.SubElement(ET.SubElement(root, "meta"), "project"), "labels")
    for name in names:
        ET.SubElement(ET.SubElement(labels, "label"), "name").text = name
    return root


def image_folder(out: Path, split: str) -> Path:
    """Where the images of a split belong."""
    return out / "images" / ("" if split == "all" else split)

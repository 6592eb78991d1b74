"""The boxes of a VOC <object>: <bndbox>, or the shape that a tool writes instead of it.

Exports of polygons have <polygon>, with <x1>, <y1>, <x2>, ... or, as LabelMe's web tool, with <pt> for each point, and
roLabelImg has <robndbox>: centre, size, and an angle in radians, clockwise on the screen.
"""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

from boxwright.data.formats.shapes import Box, center_box, points_box, turned_box

LACKS_CORNER = "<bndbox> lacks one of xmin, ymin, xmax, ymax, or it is not a number"


def boxes_of(item: ET.Element) -> tuple[list[Box | str], bool]:
    """Boxes of an object, xyxy in pixels, or what is wrong with one; and whether they are around another shape."""
    if boxes := item.findall("bndbox"):  # some tools write one object a class, with all boxes
        return [_plain(element) for element in boxes], False
    shapes = [*map(_polygon, item.findall("polygon")), *map(_turned, item.findall("robndbox"))]
    return shapes or ["has no <bndbox>, <polygon> or <robndbox>"], bool(shapes)


def text_of(element: ET.Element, tag: str) -> str:
    """The text of a child, empty if there is none."""
    return (element.findtext(tag) or "").strip()


def _plain(element: ET.Element) -> Box | str:
    try:
        x1, y1, x2, y2 = (float(text_of(element, tag)) for tag in ("xmin", "ymin", "xmax", "ymax"))
    except ValueError:
        return LACKS_CORNER
    return x1, y1, x2, y2


def _polygon(element: ET.Element) -> Box | str:
    points = [(text_of(point, "x"), text_of(point, "y")) for point in element.iterfind("pt")]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    for child in element:
        if re.fullmatch(r"[xy]\d+", child.tag):
            (xs if child.tag[0] == "x" else ys).append((child.text or "").strip())
    try:
        return points_box(xs, ys)
    except ValueError as error:
        return f"<polygon>: {error}"


def _turned(element: ET.Element) -> Box | str:
    try:
        cx, cy, width, height, angle = (float(text_of(element, tag)) for tag in ("cx", "cy", "w", "h", "angle"))
        return turned_box(center_box((cx, cy, width, height)), math.degrees(angle), (cx, cy))
    except ValueError:
        return "<robndbox> lacks one of cx, cy, w, h, angle, or it is not a number"

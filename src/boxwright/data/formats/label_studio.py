"""Label Studio's JSON and JSON-MIN: a list of tasks, boxes in per cent of the image.

Source: https://labelstud.io/guide/export and https://labelstud.io/tags/rectanglelabels. A rectangle is turned about
its top left corner. A task without annotations that has predictions is read with these. Of several annotations of a
task the one marked as ground truth counts, else the first that is not cancelled. Brushes, key points and texts are no
boxes.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from boxwright.data.folders import split_name
from boxwright.data.formats.collection import AnnotatedImage, Collection, text_size
from boxwright.data.formats.shapes import Box, MalformedError, ellipse_box, number, polygon_box, turned_box
from boxwright.data.records import Record
from boxwright.images import IMAGE_SUFFIXES

CONFIG = "label_config.xml"
_LABELS = ("rectanglelabels", "polygonlabels", "ellipselabels", "labels")
_OTHER = ("brushlabels", "keypointlabels", "choices", "text", "rating", "taxonomy", "vectorlabels", "bitmasklabels")


def read(collection: Collection, file: Path, split: str) -> None:
    """Add the images of a file; the labels of a `label_config.xml` beside it are the list of classes."""
    collection.declare(_config_labels(file.parent / CONFIG))
    content = collection.load_json(file)
    tasks = [content] if isinstance(content, dict) else content
    if not isinstance(tasks, list):
        if tasks is not None:
            collection.parsed.add_fault("broken-file", file, "is no list of Label Studio's tasks")
        return
    for i, task in enumerate(tasks, 1):
        name = task.get("id") if isinstance(task, dict) else None
        record = f", task {i if name is None else name!s:.20}"
        collection.attempt(f"{file}{record}", _read_task, collection, task, file, split, record)


def _config_labels(file: Path) -> list[str]:
    """The labels of a labelling page; [] if there is no such file."""
    try:
        return [label.get("value", "") for label in ET.parse(file).getroot().iter("Label")] if file.is_file() else []
    except (ET.ParseError, OSError, LookupError, ValueError):
        return []  # it is not needed


def _read_task(collection: Collection, task: dict[str, Any], file: Path, split: str, record: str) -> None:
    data = task["data"] if isinstance(task.get("data"), dict) else task
    word = data.get("split") or ""
    split = split_name(word) or word if isinstance(word, str) and word else split
    image = collection.new_image(_image_name(data), file, split, record)
    image.fractions = True
    regions = _regions(collection, task, image.source)
    for i, region in enumerate(regions, 1):
        where = f"{image.source}, object {i}"
        value = region.get("value", region) if isinstance(region, dict) else {}
        if region.get("type") in _OTHER if isinstance(region, dict) else False:
            collection.leave_out(f"objects of type {region['type']}", where)
        elif isinstance(value, dict) and any(key in value for key in _LABELS):
            width, height = text_size(region, "original_width", "original_height")
            image.width, image.height = width or image.width, height or image.height
            collection.attempt(where, _add, image, value, i)
        elif isinstance(value, dict) and {"x", "width"} <= set(value):
            collection.leave_out("boxes without a label", where)
        elif not isinstance(region, dict):
            collection.parsed.add_fault("broken-record", where, "is no object")


def _image_name(data: dict[str, Any]) -> str:
    """The image among a task's data: `image`, or else the first text that ends as image files do."""
    texts = [value for value in data.values() if isinstance(value, str)]
    named = [text for text in texts if Path(file_name(text)).suffix.lower() in IMAGE_SUFFIXES]
    chosen = data.get("image") if isinstance(data.get("image"), str) else next(iter(named), None)
    if not chosen:
        raise MalformedError("has no image in `data`")
    return file_name(chosen)


def file_name(address: str) -> str:
    """The path in an address; of Label Studio's local files, the part behind ``?d=``.

    >>> file_name("/data/local-files/?d=photos/a.jpg")
    'photos/a.jpg'
    """
    if "?d=" in address:
        return parse_qs(urlsplit(address).query).get("d", [address])[0]
    return address


def _regions(collection: Collection, task: dict[str, Any], source: str) -> Sequence[Any]:
    """What was drawn on a task."""
    if not isinstance(task.get("data"), dict):  # JSON-MIN: one list for each control of the labelling page
        lists = [value for value in task.values() if isinstance(value, list)]
        return [region for found in lists for region in found if isinstance(region, dict) and "x" in region]
    drawn = task.get("annotations") or task.get("completions") or []
    valid = [one for one in drawn if not one.get("was_cancelled")]
    if len(valid) > 1:
        collection.leave_out("further annotations of a task", source)
    chosen = next((one for one in valid if one.get("ground_truth")), valid[0] if valid else None)
    if chosen is None and not drawn:
        chosen = next(iter(task.get("predictions") or []), None)
    return chosen["result"] if chosen else []


def _add(image: AnnotatedImage, value: dict[str, Any], mark: int) -> None:
    labels = next(value[key] for key in _LABELS if key in value)
    box = _box(value, image.width or 100, image.height or 100)
    for label in labels if isinstance(labels, list) else [labels]:
        image.add(label, box, mark)


def _box(value: dict[str, Any], width: int, height: int) -> Box:
    """The box in fractions; turning is done in pixels."""
    to_x, to_y = width / 100, height / 100
    turn = number(value.get("rotation") or 0)
    if "points" in value:
        box = polygon_box([(number(x) * to_x, number(y) * to_y) for x, y in value["points"]])
    elif "radiusX" in value:
        x, y, a, b = (number(value[key]) for key in ("x", "y", "radiusX", "radiusY"))
        box = ellipse_box(x * to_x, y * to_y, a * to_x, b * to_y, turn)
    else:
        x, y, w, h = (number(value[key]) for key in ("x", "y", "width", "height"))
        box = (x * to_x, y * to_y, (x + w) * to_x, (y + h) * to_y)
        box = turned_box(box, turn, box[:2]) if turn else box
    return box[0] / width, box[1] / height, box[2] / width, box[3] / height


def write(out: Path, split: str, records: Sequence[Record], image_names: Sequence[str], names: Sequence[str]) -> None:
    """Write the tasks of one split, and `label_config.xml`; images are named as Label Studio names local files."""
    folder = image_folder(out, split).name
    tasks = [
        _task(i, record, {"image": f"/data/local-files/?d={quote(f'{folder}/{name}')}", "split": split}, names)
        for i, (record, name) in enumerate(zip(records, image_names, strict=True), 1)
    ]
    ET.ElementTree(_config(names)).write(out / CONFIG, encoding="utf-8")
    file = out / ("tasks.json" if split == "all" else f"tasks_{split}.json")
    file.write_text(json.dumps(tasks, ensure_ascii=False, allow_nan=False), encoding="utf-8")


def _config(names: Sequence[str]) -> ET.Element:
    """The labelling page of a project that the tasks can be imported into."""
    view = ET.Element("View")
    ET.SubElement(view, "Image", {"name": "image", "value": "$image"})
    labels = ET.SubElement(view, "RectangleLabels", {"name": "label", "toName": "image"})
    for name in names:
        ET.SubElement(labels, "Label", {"value": name})
    return view


def _task(number: int, record: Record, data: dict[str, str], names: Sequence[str]) -> dict[str, Any]:
    width, height = record.width, record.height
    result = []
    for i, ((x1, y1, x2, y2), label) in enumerate(zip(record.boxes_N4.tolist(), record.labels_N, strict=True), 1):
        box = {"x": x1 / width, "y": y1 / height, "width": (x2 - x1) / width, "height": (y2 - y1) / height}
        value = {key: 100 * part for key, part in box.items()} | {"rotation": 0, "rectanglelabels": [names[label]]}
        result.append({
            "id": f"{number}-{i}", "type": "rectanglelabels", "from_name": "label", "to_name": "image",
            "original_width": width, "original_height": height, "image_rotation": 0, "value": value,
        })  # fmt: skip
    return {"id": number, "data": data, "annotations": [{"id": number, "result": result}]}


def image_folder(out: Path, split: str) -> Path:
    """Where the images of a split belong."""
    return out / ("images" if split == "all" else split)

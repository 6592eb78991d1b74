"""JSON of data sets and platforms: BDD100K (and Scalabel), CrowdHuman, Datumaro, FiftyOne, Supervisely, COCO an image.

Sources: https://doc.bdd100k.com/format.html, https://www.crowdhuman.org/download.html,
https://open-edge-platform.github.io/datumaro (data format "Datumaro"),
https://docs.voxel51.com/user_guide/export_datasets.html,
https://developer.supervisely.com/getting-started/supervisely-annotation-format, https://cocodataset.org/#format-data.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from boxwright.data.formats.collection import AnnotatedImage, Collection, text_size
from boxwright.data.formats.huggingface import lines
from boxwright.data.formats.shapes import (
    Box,
    MalformedError,
    flat_polygon_box,
    mask_box,
    number,
    numbers,
    plain_box,
    polygon_box,
    segmentation_box,
    size_box,
)


def _rows(collection: Collection, file: Path, content: Any, keys: Sequence[str]) -> list[Any]:
    """The list in a file, directly or under one of the keys; [] and a fault recorded if there is none."""
    if isinstance(content, dict):
        content = next((content[key] for key in keys if isinstance(content.get(key), list)), content)
    if not isinstance(content, list):
        if content is not None:
            collection.parsed.add_fault("broken-file", file, f"has no list {' or '.join(f'`{key}`' for key in keys)}")
        return []
    return content


# BDD100K: `box2d` with corners in pixels; a list of all images, or a file per image (`frames` with `objects`).


def read_bdd(collection: Collection, file: Path, split: str) -> None:
    """Add the images of a file; lanes and areas, which have no `box2d`, are left out."""
    content = collection.load_json(file)
    single = isinstance(content, dict) and "name" in content and isinstance(content.get("frames"), list)
    for i, frame in enumerate(_rows(collection, file, content, ["frames"]), 1):
        where = f"{file}, image {i}"
        collection.attempt(where, _read_frame, collection, frame, content if single else frame, file, split)


def _read_frame(collection: Collection, frame: dict[str, Any], named: dict[str, Any], file: Path, split: str) -> None:
    image = collection.new_image(named["name"], file, split, f", image {named['name']}")
    image.by_stem = "." not in image.name
    for i, item in enumerate(frame.get("labels") or frame.get("objects") or [], 1):
        where = f"{image.source}, object {i}"
        if isinstance(item, dict) and not item.get("box2d"):
            collection.leave_out("objects without `box2d`", where)
        else:
            collection.attempt(where, _add_bdd, image, item, i)


def _add_bdd(image: AnnotatedImage, item: dict[str, Any], mark: int) -> None:
    crowd = bool((item.get("attributes") or {}).get("crowd"))
    image.add(item["category"], plain_box(item["box2d"][key] for key in ("x1", "y1", "x2", "y2")), mark, crowd)


# CrowdHuman: lines of JSON; `fbox` is the whole body, `vbox` its visible part, `hbox` the head.


def read_crowdhuman(collection: Collection, file: Path, split: str) -> None:
    """Add the images of a file, with the boxes of whole bodies; `mask` and what is to be ignored become ignore."""
    for line, text in lines(collection, file):
        row = collection.parse_json(text, f"{file}:{line}")
        if row is not None:
            collection.attempt(f"{file}:{line}", _read_people, collection, row, file, split, line)


def _read_people(collection: Collection, row: dict[str, Any], file: Path, split: str, line: int) -> None:
    boxes = row["gtboxes"]
    image = collection.new_image(row["ID"], file, split, f":{line}")
    image.by_stem = True
    for i, item in enumerate(boxes, 1):
        collection.attempt(f"{image.source}, object {i}", _add_person, image, item, i)


def _add_person(image: AnnotatedImage, item: dict[str, Any], mark: int) -> None:
    ignore = item["tag"] == "mask" or (item.get("extra") or {}).get("ignore") == 1
    image.add("person", size_box(item["fbox"]), mark, ignore)


# Datumaro: categories, and items with their annotations.


def read_datumaro(collection: Collection, file: Path, split: str) -> None:
    """Add the images of a file."""
    content = collection.load_json(file)
    labels = collection.attempt(f"{file}, `categories`", _datumaro_labels, content) if content is not None else None
    if labels is not None:
        collection.declare(labels)
        for i, item in enumerate(_rows(collection, file, content, ["items"]), 1):
            collection.attempt(f"{file}, item {i}", _read_item, collection, item, labels, file, split)


def _datumaro_labels(content: dict[str, Any]) -> list[str]:
    return [label["name"] for label in content["categories"]["label"]["labels"]]


def _read_item(collection: Collection, item: dict[str, Any], labels: list[str], file: Path, split: str) -> None:
    media = item.get("image") or item.get("media") or {}
    image = collection.new_image(media.get("path") or item["id"], file, split, f", item {item['id']}")
    image.by_stem = not media.get("path")
    if isinstance(media.get("size"), list) and len(media["size"]) == 2:
        image.height, image.width = text_size({"width": media["size"][0], "height": media["size"][1]})
    for i, row in enumerate(item.get("annotations") or [], 1):
        where = f"{image.source}, object {i}"
        if isinstance(row, dict) and row.get("type") not in ("bbox", "polygon", "mask"):
            collection.leave_out(f"annotations of type {row.get('type')}", where)
        else:
            collection.attempt(where, _add_datumaro, image, row, labels, i)


def _add_datumaro(image: AnnotatedImage, row: dict[str, Any], labels: list[str], mark: int) -> None:
    id_ = int(number(row["label_id"]))
    if not 0 <= id_ < len(labels):
        raise MalformedError(f"there is no label with the number {id_}")
    crowd = (row.get("attributes") or {}).get("is_crowd") is True
    image.add(labels[id_], _datumaro_box(row), mark, crowd)


def _datumaro_box(row: dict[str, Any]) -> Box:
    if row["type"] == "polygon":
        return flat_polygon_box(row["points"])
    return mask_box(row["rle"]) if row["type"] == "mask" else size_box(row["bbox"])


# FiftyOne: `samples.json` of whole data sets, `labels.json` of image detection; boxes in fractions.


def read_fiftyone(collection: Collection, file: Path, split: str) -> None:
    """Add the images of a file of either kind."""
    content = collection.load_json(file)
    if isinstance(content, dict) and isinstance(content.get("labels"), dict):
        classes = content.get("classes") or []
        collection.declare(classes if isinstance(classes, list) else [])
        for name, rows in content["labels"].items():
            collection.attempt(f"{file}, image {name:.200}", _read_labels, collection, name, rows, classes, file, split)
        return
    for i, sample in enumerate(_rows(collection, file, content, ["samples"]), 1):
        collection.attempt(f"{file}, sample {i}", _read_sample, collection, sample, file, split)


def _read_labels(
    collection: Collection, name: str, rows: list[Any] | None, classes: list[str], file: Path, split: str
) -> None:
    image = collection.new_image(name, file, split, f", image {name}")
    image.by_stem = image.fractions = True
    for i, row in enumerate(rows or [], 1):
        collection.attempt(f"{image.source}, object {i}", _add_fiftyone, image, row, classes, i)


def _read_sample(collection: Collection, sample: dict[str, Any], file: Path, split: str) -> None:
    name = sample["filepath"]
    tags = [tag for tag in sample.get("tags") or [] if tag in ("train", "val", "validation", "test")]
    split = tags[0].replace("validation", "val") if len(tags) == 1 else split
    image = collection.new_image(name, file, split, f", {name}")
    image.fractions = True
    for i, row in enumerate(_detections(sample), 1):
        collection.attempt(f"{image.source}, object {i}", _add_fiftyone, image, row, [], i)


def _detections(sample: dict[str, Any]) -> list[Any]:
    """The only field of detections, or of several the one called `ground_truth` or `detections`."""
    fields = {
        key: value["detections"]
        for key, value in sample.items()
        if isinstance(value, dict) and isinstance(value.get("detections"), list)
    }
    if len(fields) < 2:
        return next(iter(fields.values()), [])
    if not fields.keys() & {"ground_truth", "detections"}:
        raise MalformedError(f"has several fields of detections ({', '.join(fields):.200}), none called `ground_truth`")
    return fields.get("ground_truth", fields.get("detections", []))


def _add_fiftyone(image: AnnotatedImage, row: dict[str, Any], classes: list[str], mark: int) -> None:
    label = row["label"]
    image.add(classes[label] if isinstance(label, int) and classes else label, size_box(row["bounding_box"]), mark)


# Supervisely: `ann/a.jpg.json` for `img/a.jpg`, classes in `meta.json`.


def read_supervisely(collection: Collection, file: Path, split: str) -> None:
    """Add the image of a file."""
    content = collection.load_json(file)
    if content is not None:
        collection.attempt(str(file), _read_figures, collection, content, file, split)


def _read_figures(collection: Collection, content: dict[str, Any], file: Path, split: str) -> None:
    objects = content["objects"]
    image = collection.new_image(file.stem, file, split)
    image.width, image.height = text_size(content["size"])
    for i, item in enumerate(objects, 1):
        where = f"{file}, object {i}"
        if isinstance(item, dict) and item.get("geometryType") not in ("rectangle", "polygon", "bitmap"):
            collection.leave_out(f"objects of type {item.get('geometryType')}", where)
        else:
            collection.attempt(where, _add_figure, image, item, i)


def _add_figure(image: AnnotatedImage, item: dict[str, Any], mark: int) -> None:
    is_mask = item["geometryType"] == "bitmap"
    box = _bitmap_box(item["bitmap"]) if is_mask else polygon_box(item["points"]["exterior"])
    image.add(item["classTitle"], box, mark)


def _bitmap_box(bitmap: dict[str, Any]) -> Box:
    """The mask is a PNG, compressed once more, that just holds the object; its header has the size."""
    try:
        header = zlib.decompressobj().decompress(base64.b64decode(bitmap["data"]), 24)
        width, height = struct.unpack(">II", header[16:24])
    except (zlib.error, struct.error) as error:
        raise MalformedError("its bitmap is not a compressed PNG") from error
    x, y = numbers(bitmap["origin"], 2)
    return x, y, x + width, y + height


# COCO, one file per image.


def read_coco_image(collection: Collection, file: Path, split: str) -> None:
    """Add the images of a COCO file that is one of many; categories are matched by name."""
    content = collection.load_json(file)
    if content is not None:
        collection.attempt(str(file), _read_coco_image, collection, content, file, split)


def _read_coco_image(collection: Collection, content: dict[str, Any], file: Path, split: str) -> None:
    names = {row["id"]: row["name"] for row in content["categories"]}
    collection.declare(names[id_] for id_ in sorted(names, key=number))
    images = {}
    for row in content["images"]:
        image = collection.new_image(row["file_name"], file, split, f", image {row['id']}")
        image.width, image.height = text_size(row)
        images[row["id"]] = image
    for i, row in enumerate(content["annotations"], 1):
        collection.attempt(f"{file}, annotation {i}", _add_coco, images, names, row, i)


def _add_coco(images: dict[Any, AnnotatedImage], names: dict[Any, str], row: dict[str, Any], mark: int) -> None:
    if row["image_id"] not in images or row["category_id"] not in names:
        raise MalformedError("belongs to no image or no category of the file")
    box = size_box(row["bbox"]) if row.get("bbox") else segmentation_box(row.get("segmentation"))
    images[row["image_id"]].add(names[row["category_id"]], box, mark, row.get("iscrowd") in (1, "1"))

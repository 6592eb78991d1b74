"""Predictions as a COCO data set whose annotations have scores, for files and for the service."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from typing import Any, TextIO, TypeAlias

from boxwright.detections import Detections

Predicted: TypeAlias = tuple[str, tuple[int, int], Detections]  # of an image: file name, (width, height), objects
Records: TypeAlias = tuple[dict[str, Any], list[dict[str, Any]]]  # of an image: its own record, and its annotations


def coco_records(images: Iterable[Predicted]) -> Iterator[Records]:
    """The record of each image and the annotations of its objects; ids count from 1."""
    numbers = count(1)
    for image_id, (file_name, (width, height), detections) in enumerate(images, 1):
        image = {"id": image_id, "file_name": file_name, "width": width, "height": height}
        rows = detections.to_coco(image_id)
        areas = [round(row["bbox"][2] * row["bbox"][3], 3) for row in rows]
        yield (
            image,
            [{"id": next(numbers), **row, "area": area, "iscrowd": 0} for row, area in zip(rows, areas, strict=True)],
        )


def coco_categories(names: Sequence[str]) -> list[dict[str, Any]]:
    """The classes, with the ids that annotations have."""
    return [{"id": category_id, "name": name} for category_id, name in enumerate(names, 1)]


def coco_data_set(images: Iterable[Predicted], names: Sequence[str]) -> dict[str, Any]:
    """The whole data set."""
    records = list(coco_records(images))
    annotations = [row for _, rows in records for row in rows]
    return {"images": [image for image, _ in records], "annotations": annotations, "categories": coco_categories(names)}


def write_coco(records: Iterable[Records], names: Sequence[str], file: TextIO) -> None:
    """Write the data set while its records come, without keeping them in memory."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as images:  # these follow the annotations
        file.write(f'{{"categories": {json.dumps(coco_categories(names))},\n"annotations": [')
        image_mark = row_mark = ""
        for image, rows in records:
            images.write(f"{image_mark}\n{json.dumps(image)}")
            image_mark = ","
            for row in rows:
                file.write(f"{row_mark}\n{json.dumps(row)}")
                row_mark = ","
        file.write('],\n"images": [')
        images.seek(0)
        file.writelines(images)
        file.write("]}\n")

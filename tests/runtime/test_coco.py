"""Predictions as a COCO data set, whole or written image by image: the same."""

import io
import json

import numpy as np

from boxwright.detections import Detections
from boxwright.runtime.coco import coco_data_set, coco_records, write_coco

NAMES = ("cat", "dog")


def predicted(name, size, *objects):
    boxes = np.array([box for box, _, _ in objects], np.float32).reshape(-1, 4)
    scores, labels = (np.array([one[n] for one in objects], kind) for n, kind in ((1, np.float32), (2, np.int64)))
    return name, size, Detections(boxes, scores, labels, NAMES)


IMAGES = [
    predicted("a.jpg", (64, 48), ((1, 2, 4.1234567, 6), 0.9, 1), ((0, 0, 10, 10), 0.123456789, 0)),
    predicted("empty.jpg", (10, 10)),
    predicted("b \"ü\".jpg", (20, 30), ((5, 5, 5, 9), 0.5, 1)),
]  # fmt: skip


def test_ids_run_through_and_numbers_are_rounded():
    data = coco_data_set(IMAGES, NAMES)
    assert [(row["id"], row["image_id"], row["category_id"]) for row in data["annotations"]] == [
        (1, 1, 2), (2, 1, 1), (3, 3, 2)
    ]  # fmt: skip
    assert data["annotations"][0] == {
        "id": 1, "image_id": 1, "category_id": 2, "bbox": [1.0, 2.0, 3.123, 4.0], "score": 0.9, "area": 12.492,
        "iscrowd": 0,
    }  # fmt: skip
    assert data["annotations"][1]["score"] == 0.12346
    assert data["images"][1] == {"id": 2, "file_name": "empty.jpg", "width": 10, "height": 10}
    assert data["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


def test_what_is_written_image_by_image_is_the_same():
    for images in (IMAGES, IMAGES[1:2], []):
        file = io.StringIO()
        write_coco(coco_records(images), NAMES, file)
        assert json.loads(file.getvalue()) == coco_data_set(images, NAMES)

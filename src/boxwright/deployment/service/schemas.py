"""What the service says: a COCO data set whose annotations have scores, as `boxwright predict` writes it."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from boxwright.detections import Detections


class Image(BaseModel):
    """An image that was sent."""

    id: int
    file_name: str
    width: int
    height: int


class Annotation(BaseModel):
    """An object that was found; `bbox` is x, y, width, height in pixels of the image as displayed."""

    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float
    score: float
    iscrowd: int


class Category(BaseModel):
    """A class that the detector knows."""

    id: int
    name: str


class Answer(BaseModel):
    """Images in the order sent; the objects of each, best first."""

    images: list[Image]
    annotations: list[Annotation]
    categories: list[Category]


class Model(BaseModel):
    """The detector: its classes, the side of the square that images are fitted into, in pixels, and whether it writes
    its objects one after the other, so that `/write` can be asked.
    """

    names: list[str]
    image_size: int
    writes: bool


def as_coco(
    files: Sequence[str], sizes: Sequence[tuple[int, int]], found: Sequence[Detections], names: Sequence[str]
) -> dict[str, Any]:
    """The like of `Answer`, not validated, as it is ours.

    Args:
        files: what the images are called.
        sizes: their width and height.
        found: what is in them.
        names: the detector's classes.
    """
    images, annotations = [], []
    for image_id, (file, (width, height), detections) in enumerate(zip(files, sizes, found, strict=True), 1):
        images.append({"id": image_id, "file_name": file, "width": width, "height": height})
        for row in detections.to_coco(image_id):
            area = round(row["bbox"][2] * row["bbox"][3], 3)
            annotations.append({"id": len(annotations) + 1, **row, "area": area, "iscrowd": 0})
    categories = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}

"""What the service says: a COCO data set whose annotations have scores, as `boxwright predict` writes it."""

from pydantic import BaseModel


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

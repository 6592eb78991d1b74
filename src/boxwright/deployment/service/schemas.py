"""The models of requests and answers. Names and docstrings of most are part of the OpenAPI document.

What is found is answered as a COCO data set whose annotations have scores, as `boxwright predict` writes it.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, FailFast, Field

_OVER = "Objects with a score over this; by default over that of their class, which `/model` names."
Threshold = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False, description=_OVER)]
CLASSES = "Names of the classes to look for; by default all."


class Asked(BaseModel):
    """Images as text."""

    model_config = ConfigDict(extra="forbid")

    images: Annotated[list[str], FailFast(), Field(min_length=1, description="Each an image file in base64.")]
    threshold: Threshold | None = None
    classes: Annotated[list[str], FailFast(), Field(description=CLASSES)] = []


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
    """The detector: its classes, the side of the square that images are fitted into, in pixels, whether it writes its
    objects one after the other, so that `/write` can be asked, and the score over which objects count where a request
    names none: that of each class, in the order of `names`, and one for all classes.
    """

    names: list[str]
    image_size: int
    writes: bool
    threshold: float
    thresholds: list[float]


class Health(BaseModel):
    """How the service is: images waiting or in work, processes that decode, and how many of them are busy."""

    status: str
    images: int
    decoders: int
    decoders_busy: int


class Fault(BaseModel):
    """Why there is no answer."""

    detail: str


class Given(BaseModel):
    """A given object: its class, and x, y, width, height in pixels of the image as displayed."""

    model_config = ConfigDict(extra="forbid")

    category: str
    bbox: tuple[float, float, float, float]


class WordLine(BaseModel):
    """A word of the object number `object`."""

    object: int
    slot: Annotated[str, Field(description="y1, x1, y2, x2, class; x1 y1 or x2 y2 for a whole corner; end.")]
    text: Annotated[str, Field(description="Pixels of the image, a class, or noise.")]
    probability: float
    given: bool


class ObjectLine(BaseModel):
    """An object of which all words are written; `bbox` is x, y, width, height in pixels of the image as displayed."""

    object: int
    category_id: int
    name: str
    bbox: tuple[float, float, float, float]
    score: float
    given: bool


class LastLine(BaseModel):
    """The sentence is complete, or why it is not."""

    done: bool
    detail: str | None = None

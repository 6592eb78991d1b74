"""The result of reading another project's checkpoint."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from boxwright.interop.classes import Classes
from boxwright.types import Detector


@dataclass(frozen=True)
class ForeignCheckpoint:
    """A recognised checkpoint of another project.

    Attributes:
        project: its name, for messages.
        detector: the class that computes the same.
        config: its configuration; `image_size` and `class_ids` are not in the file.
        state: the tensors under our names and in our layout.
        sources: the name in the file of each tensor of `state`.
        unknown: names in the file that the network does not have, or whose tensors contradict others.
        ids: the possible ids of a class.
        coco_ids: whether the ids are COCO's category ids, unless names are given.
        guesses: what had to be guessed.
        classes: the names and ids of the classes, if the files have them.
    """

    project: str
    detector: Callable[..., Detector]
    config: Any
    state: Mapping[str, Tensor]
    sources: Mapping[str, str]
    unknown: Sequence[str]
    ids: range
    coco_ids: bool
    guesses: Sequence[str] = field(default=())
    classes: Classes | None = None

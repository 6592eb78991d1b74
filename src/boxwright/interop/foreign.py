"""What the readers of other projects' checkpoints hand over."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from boxwright.interop.classes import Classes
from boxwright.types import Detector


@dataclass(frozen=True)
class Foreign:
    """A checkpoint of another project that was recognised.

    Attributes:
        what: whose it is, for people.
        detector: our class that computes the same.
        config: its settings; the file does not tell `image_size` and `class_ids`.
        state: the tensors under our names and in our layout.
        sources: the name in the file of each of them.
        strange: names in the file that no such network has.
        numbers: the numbers that a class can have.
        coco: whether the numbers are COCO's category ids, unless somebody says otherwise.
        notes: what had to be guessed.
        classes: what the numbers stand for, where the files tell.
    """

    what: str
    detector: Callable[..., Detector]
    config: Any
    state: Mapping[str, Tensor]
    sources: Mapping[str, str]
    strange: Sequence[str]
    numbers: range
    coco: bool
    notes: Sequence[str] = field(default=())
    classes: Classes | None = None

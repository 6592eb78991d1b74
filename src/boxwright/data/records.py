"""A data set in memory, in every format's reader and writer: images with their boxes, and class names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from boxwright.files import PackedFile


@dataclass(frozen=True)
class Record:
    """One image, not yet decoded, and its annotation.

    Attributes:
        path: the image file, which may lie in a shard.
        width, height: in pixels as displayed (EXIF orientation applied), from the annotation, else from the file.
        boxes_N4: xyxy in pixels, float64, as annotated (not clipped).
        labels_N: position of each object's class in `Dataset.names`, int64.
        ignore_N: True on `difficult` and `iscrowd` objects: not trained on, and not counted in evaluation.
        image_id: the id of the image in a COCO file, text if it is text there; elsewhere its position, counted from 1.
        source: the annotation file and, for COCO, the record, for error messages.
    """

    path: Path | PackedFile
    width: int
    height: int
    boxes_N4: np.ndarray
    labels_N: np.ndarray
    ignore_N: np.ndarray
    image_id: int | str
    source: str


@dataclass(frozen=True)
class Dataset:
    """A data set without fatal faults.

    Attributes:
        root: the folder, file or URL the user named.
        format: ``coco``, ``voc``, ``yolo``, ``shards``, or the name of another format
            (`data/formats/recognise.py`).
        names: the classes; an id is a position in this tuple.
        splits: records by split name (``train``, ``val``, ``test`` or another name on disk); ``all`` is the only key
            of a data set without splits.
        category_ids: the id of each class in COCO results; position + 1 outside COCO files.
        split_ids: those of each split whose COCO file numbers the classes otherwise.
    """

    root: Path | str
    format: str
    names: tuple[str, ...]
    splits: dict[str, Sequence[Record]]
    category_ids: tuple[int, ...] = field(default=())
    split_ids: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.category_ids:
            object.__setattr__(self, "category_ids", tuple(range(1, len(self.names) + 1)))

    def ids_of(self, split: str) -> tuple[int, ...]:
        """The id of each class in COCO results of a split."""
        return self.split_ids.get(split, self.category_ids)

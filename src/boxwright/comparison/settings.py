"""What is the same for every detector of a comparison, and which detectors can be compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mode
from typing import Any

from boxwright.config import Augment, UserError, nearest
from boxwright.data.records import Record
from boxwright.models import registry
from boxwright.training.begin import read_data
from boxwright.training.config import RunConfig


@dataclass(frozen=True)
class SharedSettings:
    """Data, canvas, augmentation and budget, as values that fit into JSON.

    Attributes:
        data, val_data, val, train_split, val_split: as `train` takes them.
        size: of each detector.
        image_size: side of the square canvas, in pixels.
        augment: the fields of `boxwright.config.Augment`, all decided.
        minutes: of training and validation for each detector, or None where `epochs` are given.
        epochs: passes over the training images for each detector, or None.
        seed: of every random draw.
        device: cpu, cuda or mps.
    """

    data: str
    val_data: str | None
    val: float
    train_split: str | None
    val_split: str | None
    size: str
    image_size: int
    augment: dict[str, Any]
    minutes: float | None
    epochs: int | None
    seed: int
    device: str

    def run_config(self, model: str | None = None, out: Path = Path(), epochs: int | None = None) -> RunConfig:
        """The settings of one detector's run; what its recipe decides is left open.

        Args:
            model: the detector.
            out: folder of its run.
            epochs: passes over the training images.
        """
        return RunConfig(
            Path(self.data), model, self.size, out, val_data=self.val_data, val=self.val,  # type: ignore[bad-argument-type]
            train_split=self.train_split, val_split=self.val_split, epochs=epochs, image_size=self.image_size,
            augment=Augment(**self.augment), seed=self.seed, device=self.device,
        )  # fmt: skip

    def records(self) -> tuple[tuple[str, ...], Sequence[Record], Sequence[Record]]:
        """Classes, training images, validation images."""
        return read_data(self.run_config())


def digest(names: Sequence[str], *parts: Sequence[Record]) -> str:
    """A checksum of classes, images and their objects."""
    images = [[(record.path.name, record.labels_N.tolist(), record.boxes_N4.tolist()) for record in p] for p in parts]
    return hashlib.sha256(json.dumps([list(names), images]).encode()).hexdigest()[:16]


def trainable(size: str) -> list[str]:
    """The detectors that can be trained from scratch in a size.

    Raises:
        UserError: if there is no such size.
    """
    all_sizes = {other: None for _, _, sizes in registry.DETECTORS.values() for other in sizes}
    found = [model for model, (_, _, sizes) in registry.DETECTORS.items() if size in sizes]
    if not found:
        raise UserError(f"size can't be {size!r}{nearest(size, all_sizes)}, it must be one of: {', '.join(all_sizes)}.")
    return found


def chosen(models: Sequence[str] | str | None, size: str) -> list[str]:
    """The detectors to compare: those named, in a list or with commas between, or all that `trainable` returns.

    Raises:
        UserError: for a name that is unknown, does not have this size, or occurs twice.
    """
    known = trainable(size)
    if models is None:
        return known
    wanted = models.split(",") if isinstance(models, str) else [str(model) for model in models]
    wanted = [model.strip() for model in wanted if model.strip()]
    for model in wanted:
        if model not in known:
            raise UserError(
                f"--models: no detector {model!r} of size {size}{nearest(model, known)}; there are: {', '.join(known)}."
            )
    if not wanted or len(set(wanted)) < len(wanted):
        raise UserError(f"--models takes each detector once, from: {', '.join(known)}.")
    return wanted


def usual_image_size(size: str) -> int:
    """The side of the canvas that most detectors have in this size, in pixels."""
    return mode(registry.DETECTORS[model][2][size].image_size for model in trainable(size))


def short_name(data: str) -> str:
    """The name of a data set's folder."""
    path = Path(data).resolve()
    return path.parent.name if path.is_file() else path.name

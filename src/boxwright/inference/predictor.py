"""A detector with its hands on images: paths, PIL images, arrays and tensors in, Detections out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from boxwright.classes import Class, class_positions
from boxwright.config import UserError, require
from boxwright.detections import Detections
from boxwright.device import choose_device
from boxwright.images import fit
from boxwright.inference.prompts import check_objects, with_known
from boxwright.inference.sequence_stream import watch
from boxwright.models.sequence.sequence_detector import SequenceDetector
from boxwright.models.weights import load_detector, load_together
from boxwright.runtime.inputs import DecodedImage
from boxwright.runtime.predictor_base import BasePredictor, check_batch_size, check_threshold, chunks
from boxwright.runtime.sequence_types import GivenObjects, StreamObject, StreamToken, check_lists
from boxwright.types import Batch, Detector

Picture: TypeAlias = str | Path | Image.Image | np.ndarray | Tensor
Pictures: TypeAlias = list[Picture] | tuple[Picture, ...]


@overload
def load(path: Path | str, device: str = "auto", base: Path | str | None = None) -> Predictor: ...
@overload
def load(path: Mapping[str, Path | str], device: str = "auto") -> dict[str, Predictor]: ...
def load(
    path: Path | str | Mapping[str, Path | str], device: str = "auto", base: Path | str | None = None
) -> Predictor | dict[str, Predictor]:
    """The detector stored at `path`, ready to predict; or several, of which adapters share the base.

    Args:
        path: a ``.safetensors`` file, with or without the ending, or the folder of a run. Several as
            ``{"cells": "runs/cells", "dogs": "runs/dogs"}``, for predictors under these names.
        device: auto, cpu, cuda or mps.
        base: the checkpoint that an adapter was trained on, where it is not at the place that the adapter names.

    Raises:
        UserError: if there are no such weights, they are not ours, or the device is not there; for an adapter whose
            base is not found.
    """
    kind, _ = choose_device(device)
    if isinstance(path, Mapping):
        require(base is None, "of several adapters, each names its base; give none.")
        return {name: Predictor(detector, kind) for name, detector in load_together(path, kind).items()}
    return Predictor(load_detector(path, kind, base), kind)


class Predictor(BasePredictor):
    """Finds objects in images.

    Args:
        detector: on `device`; it is put into evaluation mode.
        device: where it computes.
    """

    takes = "a path, PIL image, array or tensor"

    def __init__(self, detector: Detector, device: torch.device | str = "cpu"):
        self.detector, self.device = detector.eval(), torch.device(device)

    @property
    def names(self) -> tuple[str, ...]:
        """The classes it knows."""
        return self.detector.names

    @property
    def image_size(self) -> int:
        """Side of the square canvas that images are fitted into, in pixels."""
        return self.detector.image_size

    @overload
    def predict(
        self,
        image: Picture,
        threshold: float = 0.5,
        batch_size: int = 8,
        classes: Class | Sequence[Class] | None = None,
        given: GivenObjects | None = None,
        objects: int | None = None,
    ) -> Detections: ...
    @overload
    def predict(
        self,
        image: Pictures,
        threshold: float = 0.5,
        batch_size: int = 8,
        classes: Class | Sequence[Class] | None = None,
        given: Sequence[GivenObjects] | None = None,
        objects: int | None = None,
    ) -> list[Detections]: ...
    def predict(
        self,
        image: Picture | Pictures,
        threshold: float = 0.5,
        batch_size: int = 8,
        classes: Class | Sequence[Class] | None = None,
        given: Any = None,
        objects: int | None = None,
    ) -> Detections | list[Detections]:
        """The objects in an image, or in each of a list of images, best first, in pixels of the image.

        Args:
            image: a path, a PIL image, a numpy array (H, W, 3) uint8 in RGB order, a tensor (3, H, W) uint8 or float in
                [0, 1], or a list or tuple of any of these.
            threshold: objects with a score over this, in [0, 1).
            batch_size: how many images of a list are computed at once.
            classes: the class to look for, by name or position in `names`, or several; by default all.
            given: objects that are known already, as (class, (x1, y1, x2, y2)) in pixels; the others are returned. For
                a list of images, a list for each. Only detectors that write sentences, as pix2seq does, go on from
                them.
            objects: how many to say at most, given ones included; also only of such detectors.

        Raises:
            UserError: if a file cannot be read, or an array is none of these; for a class that the detector doesn't
                know, a given box outside its image, or more objects than a sentence has room for.
        """
        check_threshold(threshold)
        check_batch_size(batch_size)
        check_objects(objects)
        ask = _Ask(class_positions(classes, self.names), objects)
        if not isinstance(image, list | tuple):
            return self._detect([self.decode(image)], threshold, ask, None if given is None else [given])[0]
        known = check_lists(given, len(image))
        found: list[Detections] = []
        for chunk in chunks(zip(image, known, strict=True), batch_size):
            ready = [self.decode(one) for one, _ in chunk]
            found += self._detect(ready, threshold, ask, None if given is None else [objects for _, objects in chunk])
        return found

    def decode(self, picture: Any) -> DecodedImage:
        """An image in any of the forms that `predict` takes, decoded."""
        return super().decode(_to_array(picture) if isinstance(picture, Tensor) else picture)

    def detect(
        self, ready: Sequence[DecodedImage], threshold: float, classes: Sequence[int] | None
    ) -> list[Detections]:
        """The objects in each of a batch of decoded images, of these classes (positions; None is all)."""
        return self._detect(ready, threshold, _Ask(classes))

    @property
    def writes(self) -> bool:
        """Whether it writes its objects one after the other, and can be watched (`write`)."""
        return isinstance(self.detector, SequenceDetector)

    def write(
        self, picture: Any, given: GivenObjects = (), classes: Class | Sequence[Class] | None = None
    ) -> Iterator[StreamToken | StreamObject]:
        """As of `BasePredictor`."""
        if not isinstance(self.detector, SequenceDetector):
            kind = type(self.detector).__name__.lower()
            raise UserError(
                f"a {kind} finds all objects at once; only one that writes (pix2seq, patchseq) can be watched."
            )
        wanted = class_positions(classes, self.names)
        ready = picture if isinstance(picture, DecodedImage) else self.decode(picture)
        batch = with_known(to_batch([ready], self.image_size), [given], self.names).to(self.device)
        return watch(self.detector, batch, given, wanted)

    @torch.inference_mode()
    def _detect(
        self, ready: Sequence[DecodedImage], threshold: float, ask: _Ask, known: Sequence[GivenObjects] | None = None
    ) -> list[Detections]:
        batch = to_batch(ready, self.detector.image_size)
        batch = (batch if known is None else with_known(batch, known, self.names)).to(self.device)
        raw = self.detector(batch.images_BCHW, batch.sizes_B2)
        said = self.detector.complete(raw, batch, ask.classes, ask.objects)
        return said.to_detections(batch, self.names, threshold)


@dataclass
class _Ask:
    """Which classes to look for, and how many objects to say; None leaves it open."""

    classes: Sequence[int] | None
    objects: int | None = None


def _to_array(image_CHW: Tensor) -> np.ndarray:
    require(
        image_CHW.ndim == 3 and len(image_CHW) == 3,
        f"a tensor must be (3, H, W), not {tuple(image_CHW.shape)}; give several images as a list.",
    )
    return _to_uint8(image_CHW).permute(1, 2, 0).cpu().numpy()


def _to_uint8(image_CHW: Tensor) -> Tensor:
    if image_CHW.dtype == torch.uint8:
        return image_CHW
    fits = image_CHW.is_floating_point() and bool(((image_CHW >= 0) & (image_CHW <= 1)).all())
    require(fits, "a tensor must be uint8, or floating point in [0, 1]; divide by 255 what reaches further.")
    return (image_CHW.float() * 255).round().to(torch.uint8)


def to_batch(ready: Sequence[DecodedImage], side: int) -> Batch:
    """Images without annotation as the batch that detectors take."""
    fitted = [fit(one.image, side) for one in ready]
    n = len(ready)
    return Batch(
        images_BCHW=torch.from_numpy(np.stack([canvas for canvas, _ in fitted])).permute(0, 3, 1, 2),
        sizes_B2=torch.tensor([size for _, size in fitted]),
        originals_B2=torch.tensor([one.size[::-1] for one in ready]),
        boxes_BN4=torch.zeros(n, 1, 4),
        labels_BN=torch.zeros(n, 1, dtype=torch.int64),
        valid_BN=torch.zeros(n, 1, dtype=torch.bool),
        index_B=torch.arange(n),
    )

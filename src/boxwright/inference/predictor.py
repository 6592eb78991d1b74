"""A detector with its hands on images: paths, PIL images, arrays and tensors in, Detections out."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from boxwright.config import UserError, require
from boxwright.data.images import fit, image_size, open_image, to_rgb
from boxwright.evaluation.run import choose_device
from boxwright.inference.prompts import Class, Known, check_objects, class_positions, with_known
from boxwright.inference.sources import collect
from boxwright.models.weights import load_detector, load_together
from boxwright.types import Batch, Detections, Detector

Picture: TypeAlias = str | Path | Image.Image | np.ndarray | Tensor
Pictures: TypeAlias = list[Picture] | tuple[Picture, ...]
T = TypeVar("T")


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


@dataclass
class Found:
    """One image of a stream.

    Attributes:
        path: the file.
        image: as it was decoded for the detector; a large JPEG may be reduced.
        size: (width, height) of the file as displayed, which the boxes refer to.
        detections: what was found.
    """

    path: Path
    image: Image.Image
    size: tuple[int, int]
    detections: Detections


class Predictor:
    """Finds objects in images.

    Args:
        detector: on `device`; it is put into evaluation mode.
        device: where it computes.
    """

    def __init__(self, detector: Detector, device: torch.device | str = "cpu"):
        self.detector, self.device = detector.eval(), torch.device(device)

    @property
    def names(self) -> tuple[str, ...]:
        """The classes it knows."""
        return self.detector.names

    @overload
    def predict(
        self,
        image: Picture,
        threshold: float = 0.5,
        batch_size: int = 8,
        classes: Class | Sequence[Class] | None = None,
        given: Known | None = None,
        objects: int | None = None,
    ) -> Detections: ...
    @overload
    def predict(
        self,
        image: Pictures,
        threshold: float = 0.5,
        batch_size: int = 8,
        classes: Class | Sequence[Class] | None = None,
        given: Sequence[Known] | None = None,
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
        side = self.detector.image_size
        if not isinstance(image, list | tuple):
            return self._detect([_decode(image, side)], threshold, ask, None if given is None else [given])[0]
        known: Sequence[Known] = [()] * len(image) if given is None else given
        require(isinstance(known, list | tuple), f"given objects are a list for each image, not {known!r}.")
        require(len(known) == len(image), f"given objects are for {len(known)} images, but there are {len(image)}.")
        found: list[Detections] = []
        for chunk in _chunks(zip(image, known, strict=True), batch_size):
            ready = [_decode(one, side) for one, _ in chunk]
            found += self._detect(ready, threshold, ask, None if given is None else [objects for _, objects in chunk])
        return found

    def stream(
        self,
        source: str | Path | Iterable[Path],
        batch_size: int = 8,
        threshold: float = 0.5,
        skipped: list[UserError] | None = None,
        classes: Class | Sequence[Class] | None = None,
    ) -> Iterator[tuple[Path, Detections]]:
        """Each image file of `source` and what is in it, in order, holding no more than three batches in memory.

        Args:
            source: a file, a folder, a glob or a text file of paths (`boxwright.inference.sources.collect`), or paths.
            batch_size: how many images are computed at once.
            threshold: objects with a score over this, in [0, 1).
            skipped: a list that takes the errors of the files that cannot be read, which are then passed over. Without
                it, the first such file ends the stream.
            classes: the class to look for, by name or position in `names`, or several; by default all.

        Raises:
            UserError: if nothing is found, or a file cannot be read and `skipped` is None, or the detector doesn't know
                a class.
        """
        for found in self.find(source, batch_size, threshold, skipped, classes):
            yield found.path, found.detections

    def find(
        self,
        source: str | Path | Iterable[Path],
        batch_size: int = 8,
        threshold: float = 0.5,
        skipped: list[UserError] | None = None,
        classes: Class | Sequence[Class] | None = None,
    ) -> Iterator[Found]:
        """`stream`, with the images."""
        check_threshold(threshold)
        check_batch_size(batch_size)
        ask = _Ask(class_positions(classes, self.names))
        paths = collect(source) if isinstance(source, str | Path) else source
        decoded = _readable(_decode_ahead(paths, self.detector.image_size, 2 * batch_size), skipped)
        for chunk in _chunks(decoded, batch_size):
            found = self._detect([ready for _, ready in chunk], threshold, ask)
            for (path, ready), detections in zip(chunk, found, strict=True):
                yield Found(path, ready.image, ready.size, detections)

    @torch.inference_mode()
    def _detect(
        self, ready: Sequence[Ready], threshold: float, ask: _Ask, known: Sequence[Known] | None = None
    ) -> list[Detections]:
        batch = to_batch(ready, self.detector.image_size)
        batch = (batch if known is None else with_known(batch, known, self.names)).to(self.device)
        raw = self.detector(batch.images_BCHW, batch.sizes_B2)
        said = self.detector.complete(raw, batch, ask.classes, ask.objects)
        return said.to_detections(batch, self.names, threshold)


@dataclass
class _Ask:
    """Which classes to look for, and how many objects to say; None leaves it open."""

    classes: list[int] | None
    objects: int | None = None


def check_threshold(threshold: float) -> None:
    """Raise `UserError` unless 0 <= threshold < 1."""
    require(0 <= threshold < 1, f"the score threshold must be at least 0 and under 1, not {threshold}.")


def check_batch_size(batch_size: int) -> None:
    """Raise `UserError` unless the batch size is at least 1."""
    require(batch_size >= 1, f"the batch size must be at least 1, not {batch_size}.")


@dataclass
class Ready:
    """A decoded image and its size (width, height) before any reduction."""

    image: Image.Image
    size: tuple[int, int]


def _decode(picture: Picture, side: int) -> Ready:
    if isinstance(picture, str | Path):
        path = Path(picture)
        return Ready(open_image(path, side), image_size(path))
    image = _to_pil(picture)
    require(min(image.size), f"an image must have pixels, not {image.width} x {image.height}.")
    return Ready(image, image.size)


def _to_pil(picture: Image.Image | np.ndarray | Tensor) -> Image.Image:
    if isinstance(picture, Image.Image):
        return to_rgb(picture)
    if isinstance(picture, Tensor):
        require(
            picture.ndim == 3 and len(picture) == 3,
            f"a tensor must be (3, H, W), not {tuple(picture.shape)}; give several images as a list.",
        )
        return Image.fromarray(_to_uint8(picture).permute(1, 2, 0).cpu().numpy())
    require(
        isinstance(picture, np.ndarray), f"an image must be a path, PIL image, array or tensor, not {type(picture)}."
    )
    require(
        picture.ndim == 3 and picture.shape[2] == 3 and picture.dtype == np.uint8,
        f"an array must be (H, W, 3) of uint8, RGB, not {picture.shape} of {picture.dtype}; give several as a list.",
    )
    return Image.fromarray(picture)


def _to_uint8(image_CHW: Tensor) -> Tensor:
    if image_CHW.dtype == torch.uint8:
        return image_CHW
    fits = image_CHW.is_floating_point() and bool(((image_CHW >= 0) & (image_CHW <= 1)).all())
    require(fits, "a tensor must be uint8, or floating point in [0, 1]; divide by 255 what reaches further.")
    return (image_CHW.float() * 255).round().to(torch.uint8)


def to_batch(ready: Sequence[Ready], side: int) -> Batch:
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


def _decode_ahead(paths: Iterable[Path], side: int, ahead: int) -> Iterator[tuple[Path, Future[Ready]]]:
    """Decode in threads, in order, never more than `ahead` images before the one that is asked for."""
    waiting: deque[tuple[Path, Future[Ready]]] = deque()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for path in paths:
            waiting.append((path, pool.submit(_decode, path, side)))
            if len(waiting) > ahead:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()


def _readable(
    decoded: Iterable[tuple[Path, Future[Ready]]], skipped: list[UserError] | None
) -> Iterator[tuple[Path, Ready]]:
    for path, ready in decoded:
        try:
            yield path, ready.result()
        except UserError as error:
            if skipped is None:
                raise
            skipped.append(error)


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk

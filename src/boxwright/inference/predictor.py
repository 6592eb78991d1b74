"""The predictor of a checkpoint: paths, PIL images, arrays and tensors in, Detections out."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from boxwright.boxes import to_canvas
from boxwright.checkpoints.detector_file import load_detector, load_together
from boxwright.checkpoints.locate import as_path, is_exported
from boxwright.config import require
from boxwright.detections import Detections
from boxwright.device import choose_device, one_thread_after_fork, usual_torch
from boxwright.images import fit
from boxwright.inference.sequence_stream import generate_objects, token_format
from boxwright.models.sequence.sequence_detector import SequenceDetector
from boxwright.runtime.inputs import DecodedImage, whole
from boxwright.runtime.onnx_detector import Detector as OnnxDetector
from boxwright.runtime.predictor_base import BasePredictor
from boxwright.runtime.sequence_reader import read_tokens
from boxwright.runtime.sequence_types import CheckedObjects, StreamObject, StreamToken
from boxwright.types import Batch, Detector, evaluating


@overload
def load(path: Path | str, device: str | torch.device = "auto", base: Path | str | None = None) -> BasePredictor: ...
@overload
def load(path: Mapping[str, Path | str], device: str | torch.device = "auto") -> dict[str, Predictor]: ...
def load(
    path: Path | str | Mapping[str, Path | str], device: str | torch.device = "auto", base: Path | str | None = None
) -> BasePredictor | dict[str, Predictor]:
    """The predictor of the detector stored at `path`; or several predictors, whose adapters share their base.

    Args:
        path: a ``.safetensors`` file, with or without the ending, the folder of a run, or a name that stands for
            weights (docs/models.md): a `Predictor`. An exported ``.onnx`` file: a `boxwright.runtime.Detector`.
            Several as ``{"cells": "runs/cells", "dogs": "runs/dogs"}``, for predictors under these names.
        device: auto, cpu, cuda or mps; of an exported file, auto, cpu or cuda.
        base: the checkpoint that an adapter was trained on, where it is not at the place that the adapter names.

    Raises:
        UserError: if there are no such weights, they are not ours, or the device is not there; for an adapter whose
            base is not found.
    """
    if not isinstance(path, Mapping) and is_exported(as_path(path).expanduser()):
        require(base is None, f"{path} is an exported file, which has no base; leave it out.")
        return OnnxDetector(as_path(path).expanduser(), str(device))
    device, _ = choose_device(device)
    if isinstance(path, Mapping):
        require(base is None, "of several adapters, each names its base; give none.")
        return {name: Predictor(detector, device) for name, detector in load_together(path, device).items()}
    return Predictor(load_detector(path, device, base), device)


class Predictor(BasePredictor):
    """Finds objects in images.

    Args:
        detector: on `device`; it is put into evaluation mode.
        device: where it computes.
    """

    takes = "a path, the bytes of a file, a file object, a PIL image, an array or a tensor"

    def __init__(self, detector: Detector, device: torch.device | str = "cpu"):
        self.detector, self.device, self._process = detector.eval(), torch.device(device), os.getpid()
        one_thread_after_fork()
        self.kind = f"a {type(detector).__name__.lower()}"

    def __getstate__(self) -> dict[str, Any]:
        """Tensors as bytes: multiprocessing would hand over each as a file, and has no room for hundreds of them."""
        return {"detector": pickle.dumps(self.detector), "device": self.device}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(pickle.loads(state["detector"]), state["device"])  # noqa: S301 - a part of a pickle  # type: ignore[misc]

    @property
    def names(self) -> tuple[str, ...]:
        """The classes it knows."""
        return self.detector.names

    @property
    def image_size(self) -> int:
        """Side of the square canvas that images are fitted into, in pixels."""
        return self.detector.image_size

    @property
    def card(self) -> Mapping[str, Any]:
        """The model card."""
        return self.detector.card

    @property
    def generates_tokens(self) -> bool:
        """Whether it is a sequence detector that can be given objects, and streamed."""
        return isinstance(self.detector, SequenceDetector) and self.detector.accepts_given

    @staticmethod
    def whole(image: Any) -> Image.Image:
        """See `BasePredictor`."""
        return whole(_to_array(image) if isinstance(image, Tensor) else image)

    def decode(self, image: Any) -> DecodedImage:
        """An image in any of the forms that `predict` takes, decoded."""
        return super().decode(_to_array(image) if isinstance(image, Tensor) else image)

    @usual_torch()
    @torch.inference_mode()
    def detect(
        self,
        images: Sequence[DecodedImage],
        threshold: float,
        classes: Sequence[int] | None,
        given: Sequence[CheckedObjects] | None = None,
        objects: int | None = None,
    ) -> list[Detections]:
        """See `BasePredictor`."""
        forked = self.device.type == "cuda" and os.getpid() != self._process
        require(not forked, "a GPU can't be used in a forked process; start it with multiprocessing's `spawn`.")
        batch = to_batch(images, self.image_size)
        batch = (batch if given is None else with_given(batch, given)).to(self.device)
        with evaluating(self.detector):
            outputs = self.detector(batch.images_BCHW, batch.sizes_B2)
            predictions = self.detector.complete(outputs, batch, classes, objects)
        return predictions.to_detections(batch, self.names, threshold)

    @usual_torch()
    def _stream_tokens(
        self, image: DecodedImage, given: CheckedObjects, classes: Sequence[int] | None
    ) -> Iterator[StreamToken | StreamObject]:
        assert isinstance(self.detector, SequenceDetector)
        batch = with_given(to_batch([image], self.image_size), [given]).to(self.device)
        objects = generate_objects(self.detector, batch, len(given), classes)
        return read_tokens(objects, token_format(self.detector), self.names, given)


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


def to_batch(images: Sequence[DecodedImage], side: int) -> Batch:
    """Images without annotation as the batch that detectors take."""
    fitted = [fit(one.image, side) for one in images]
    n = len(images)
    return Batch(
        images_BCHW=torch.from_numpy(np.stack([canvas for canvas, _ in fitted])).permute(0, 3, 1, 2),
        sizes_B2=torch.tensor([size for _, size in fitted]),
        originals_B2=torch.tensor([one.size[::-1] for one in images]),
        boxes_BN4=torch.zeros(n, 1, 4),
        labels_BN=torch.zeros(n, 1, dtype=torch.int64),
        valid_BN=torch.zeros(n, 1, dtype=torch.bool),
        index_B=torch.arange(n),
    )


def with_given(batch: Batch, given: Sequence[CheckedObjects]) -> Batch:
    """The batch with the given objects of each image, in their order."""
    most = max(map(len, given), default=0)
    boxes_BN4, labels_BN = torch.zeros(len(batch), most, 4), torch.zeros(len(batch), most, dtype=torch.int64)
    valid_BN = torch.zeros(len(batch), most, dtype=torch.bool)
    for row, objects in enumerate(given):
        for position, (label, box) in enumerate(objects):
            labels_BN[row, position], boxes_BN4[row, position], valid_BN[row, position] = label, torch.tensor(box), True
    canvas_2 = torch.tensor(batch.images_BCHW.shape[-2:])
    boxes_BN4 = to_canvas(boxes_BN4, canvas_2, batch.sizes_B2[:, None], batch.originals_B2[:, None])
    return replace(batch, boxes_BN4=boxes_BN4, labels_BN=labels_BN, valid_BN=valid_BN)

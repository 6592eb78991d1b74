"""The predictor of an exported file: pixels in, boxes out, computed by onnxruntime alone."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np

from boxwright.classes import check_names
from boxwright.config import UserError, require
from boxwright.detections import Detections
from boxwright.runtime.inputs import DecodedImage
from boxwright.runtime.onnx_checksum import is_whole
from boxwright.runtime.predictor_base import BasePredictor
from boxwright.runtime.sequence_reader import ObjectTokens, TokenFormat, read_tokens
from boxwright.runtime.sequence_types import CheckedObjects, StreamObject, StreamToken

FORMAT = 1  # of the files this reads; `boxwright export` writes it into them
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_OUTPUTS = ["boxes", "scores", "labels"]
_SEQUENCE = [*_OUTPUTS, "order", "words", "word_log_probs"]


@dataclass(frozen=True)
class Facts:
    """What a file says about its detector.

    Attributes:
        names: the classes, in the order of their positions.
        image_size: side of the canvas that images are fitted into, in pixels.
        model: which detector, as `--model` names it.
        precision: fp32, fp16 or int8.
        card: how it was made.
        token_format: what its tokens stand for; None if it doesn't generate any.
    """

    names: tuple[str, ...]
    image_size: int
    model: str
    precision: str
    card: dict[str, Any]
    token_format: TokenFormat | None = None


class Detector(BasePredictor):
    """Finds objects in images with a file that `boxwright export` wrote.

    Args:
        path: the ``.onnx`` file.
        device: auto, cpu or cuda, which needs the package ``onnxruntime-gpu``.
        seed: for sequence detectors that sample tokens. All images use the same random numbers, so that the objects
            of an image don't depend on the other images.
        threads: that compute one batch; 0 is as many as OMP_NUM_THREADS says, or one for each core.

    Raises:
        UserError: if there is no such file, it is no detector, cut short or of a newer version, or the device is not
            there.
    """

    def __init__(self, path: Path | str, device: str = "auto", seed: int = 0, threads: int = 0):
        self.path, self.seed = Path(path).expanduser().absolute(), seed
        require(isinstance(threads, int) and threads >= 0, f"threads is a whole number, 0 or more, not {threads!r}.")
        self._device, self._threads, self._process = str(device), threads, os.getpid()
        self._session = _open(self.path, self._device, threads)
        self.facts = _facts(self._session, self.path)
        self._samples = any(entry.name == "seed" for entry in self._session.get_inputs())
        self.kind = f"a {self.facts.model}"

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "device": self._device, "seed": self.seed, "threads": self._threads}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # the file is opened again  # type: ignore[misc]

    @property
    def names(self) -> tuple[str, ...]:
        """The classes it knows."""
        return self.facts.names

    @property
    def image_size(self) -> int:
        """Side of the square canvas that images are fitted into, in pixels."""
        return self.facts.image_size

    @property
    def card(self) -> Mapping[str, Any]:
        """The model card that the file had when it was exported."""
        return self.facts.card

    @property
    def generates_tokens(self) -> bool:
        """Whether the file gives its tokens."""
        return self.facts.token_format is not None

    def detect(
        self,
        images: Sequence[DecodedImage],
        threshold: float,
        classes: Sequence[int] | None,
        given: Sequence[CheckedObjects] | None = None,
        objects: int | None = None,
    ) -> list[Detections]:
        """See `BasePredictor`; images of the same size are computed together."""
        self._check_request(given, objects)
        found: dict[int, Detections] = {}
        for group in _of_one_size(images):
            given_here = None if given is None else [given[i] for i in group]
            outputs = self._compute([images[i] for i in group], _OUTPUTS, classes, given_here)
            for i, boxes_D4, scores_D, labels_D in zip(group, *outputs, strict=True):
                keep_D = scores_D > threshold
                self._check_labels(labels_D[keep_D])
                if classes is not None:
                    keep_D &= np.isin(labels_D, classes)
                boxes_N4 = _to_file_pixels(boxes_D4[keep_D], images[i])
                found[i] = Detections(boxes_N4, scores_D[keep_D], labels_D[keep_D], self.names)
        return [found[i] for i in range(len(images))]

    def _check_request(self, given: Sequence[CheckedObjects] | None, objects: int | None) -> None:
        """Raise `UserError` for a request that this file cannot take."""
        only = "only a sequence detector can be given objects, or a number of them"
        plain = given is None and objects is None
        require(self.generates_tokens or plain, f"{only}, and this is {self.kind}; export a pix2seq or patchseq.")
        fixed = "an exported file holds how many objects it generates"
        require(objects is None, f"{fixed}, so that `objects` can't be given; load the checkpoint to choose.")

    def _compute(
        self,
        images: Sequence[DecodedImage],
        outputs: list[str],
        classes: Sequence[int] | None,
        given: Sequence[CheckedObjects] | None,
    ) -> list[np.ndarray]:
        """Outputs of the file for images of one size."""
        images_BHW3 = np.stack([np.asarray(one.image) for one in images])
        form = self.facts.token_format
        if form is None:
            return self._run(images_BHW3, outputs)
        more = _wanted_array(classes, self.names)
        if given is not None:
            more |= _given_arrays(given, images, form.objects)
        return self._run(images_BHW3, outputs, more)

    def _stream_tokens(
        self, image: DecodedImage, given: CheckedObjects, classes: Sequence[int] | None
    ) -> Iterator[StreamToken | StreamObject]:
        form = self.facts.token_format
        assert form is not None
        outputs = self._compute([image], _SEQUENCE, classes, [given])
        boxes_N4, scores_N, labels_N, order_N, tokens_NS, log_probs_NS = (part[0] for part in outputs)
        self._check_labels(labels_N[scores_N > 0])
        boxes_N4 = _to_file_pixels(boxes_N4, image)
        objects = (
            ObjectTokens(tokens_S, log_probs_S, tuple(boxes_N4[i].tolist()), int(labels_N[i]), float(scores_N[i]))
            for i, tokens_S, log_probs_S in zip(np.argsort(order_N), tokens_NS, log_probs_NS, strict=True)
        )
        return read_tokens(objects, form, self.names, given)

    def run(self, images_BHW3: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All predictions for images of one size: boxes (B, D, 4), scores (B, D) and labels (B, D).

        Args:
            images_BHW3: uint8, RGB.

        Raises:
            UserError: where onnxruntime fails, as for want of memory.
        """
        boxes_BD4, scores_BD, labels_BD = self._run(images_BHW3, _OUTPUTS)
        return boxes_BD4, scores_BD, labels_BD

    def _open_after_fork(self) -> None:
        on_gpu = self._session.get_providers()[0] != _PROVIDERS["cpu"]
        require(not on_gpu, "a GPU can't be used in a forked process; start it with multiprocessing's `spawn`.")
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._session))  # its end would wait for threads that are not here
        self._session, self._process = _open(self.path, "cpu", threads=1), os.getpid()

    def _check_labels(self, labels: np.ndarray) -> None:
        if labels.size and not 0 <= labels.min() <= labels.max() < len(self.names):
            raise _changed(self.path, f"it has {len(self.names)} names, and finds class {labels.max()}, counted from 0")

    def _run(
        self, images_BHW3: np.ndarray, outputs: list[str], more: Mapping[str, np.ndarray] | None = None
    ) -> list[np.ndarray]:
        inputs = {"images": images_BHW3, **(more or {})}
        if self._samples:
            inputs["seed"] = np.full(len(images_BHW3), self.seed, np.int64)
        if os.getpid() != self._process:  # forked, without the threads of the session
            self._open_after_fork()
        try:
            return self._session.run(outputs, inputs)
        except Exception as error:  # onnxruntime's errors have no common class but this one
            shape = " x ".join(map(str, np.shape(images_BHW3)))
            raise UserError(f"{self.path} can't be computed on images of {shape}: {_first_line(error)}") from error


def _of_one_size(images: Sequence[DecodedImage]) -> Iterator[list[int]]:
    """Positions of the images, those of the same size together: a file takes images of one size at once."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i, one in enumerate(images):
        groups.setdefault(one.image.size, []).append(i)
    yield from groups.values()


def _to_file_pixels(boxes_N4: np.ndarray, image: DecodedImage) -> np.ndarray:
    """Boxes in pixels of the file, which may be larger than the decoded image; clipped to it."""
    if image.size == image.image.size:
        return boxes_N4
    limit_4 = np.array(image.size * 2, np.float32)
    return np.minimum(boxes_N4 * (limit_4 / np.array(image.image.size * 2, np.float32)), limit_4)


def _given_arrays(
    given: Sequence[CheckedObjects], images: Sequence[DecodedImage], objects: int
) -> dict[str, np.ndarray]:
    """Given objects as inputs of the file, in pixels of the decoded images; rows with label -1 are empty.

    Raises:
        UserError: for so many in one image that nothing could follow.
    """
    most = max(map(len, given))
    require(most < objects, f"{most} objects are given, and a sequence holds {objects}, given ones included.")
    boxes_BG4 = np.zeros((len(given), max(1, most), 4), np.float32)
    labels_BG = np.full(boxes_BG4.shape[:2], -1, np.int64)
    for row, own in enumerate(given):
        for place, (label, box) in enumerate(own):
            boxes_BG4[row, place], labels_BG[row, place] = box, label
    boxes_BG4 *= np.array([one.image.size * 2 for one in images], np.float32)[:, None]
    boxes_BG4 /= np.array([one.size * 2 for one in images], np.float32)[:, None]
    return {"given_boxes": boxes_BG4, "given_labels": labels_BG}


def _wanted_array(classes: Sequence[int] | None, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The classes to generate, as an input of the file; nothing for all."""
    return {} if classes is None else {"wanted_classes": np.isin(np.arange(len(names)), list(classes))}


def _open(path: Path, device: str, threads: int) -> Any:
    require(path.is_file(), f"there is no file {path}.")
    import onnxruntime  # here, as it takes a while

    require(_is_whole(path), f"{path} is damaged: it has another checksum than when it was written.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or _usual_threads()
    options.log_severity_level = 4  # errors are raised, and need not be logged as well
    try:
        return onnxruntime.InferenceSession(path, options, providers=_providers(device))
    except UserError:
        raise
    except Exception as error:  # see `Detector._run`
        reason = f"onnxruntime {onnxruntime.__version__} says: {_first_line(error)}"
        raise UserError(f"{path} is no ONNX file, is cut short, or is newer than what runs it. {reason}") from error


def _is_whole(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            if not os.fstat(stream.fileno()).st_size:
                return True  # which onnxruntime refuses
            with mmap(stream.fileno(), 0, access=ACCESS_READ) as content:
                return is_whole(content)
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}.") from error


def _providers(device: str) -> list[str]:
    import onnxruntime

    there = onnxruntime.get_available_providers()
    if device == "auto":
        return [name for name in reversed(_PROVIDERS.values()) if name in there]
    require(device in _PROVIDERS, f"an exported detector runs on auto, cpu or cuda, not {device!r}.")
    require(_PROVIDERS[device] in there, f"{device}: not in this onnxruntime; the package onnxruntime-gpu has it.")
    return [_PROVIDERS[device]]


def _facts(session: Any, path: Path) -> Facts:
    """Read what the exporter wrote into the file."""
    try:
        stored = session.get_modelmeta().custom_metadata_map
    except UnicodeDecodeError as error:
        raise _changed(path, "what it says of itself is no text in UTF-8") from error
    require("boxwright" in stored, f"{path} is an ONNX file, but none that `boxwright export` wrote.")
    version = stored["boxwright"]
    newer = version.isdecimal() and int(version) > FORMAT
    require(not newer, f"{path} is of format {version}, and this boxwright reads up to {FORMAT}; update boxwright.")
    wrong = _changed(path, "what it says of itself is not right")
    try:
        names, card = json.loads(stored["names"]), json.loads(stored["card"])
        form = TokenFormat.from_json(stored["sentence"]) if "sentence" in stored else None
        facts = Facts(tuple(names), int(stored["image_size"]), stored["model"], stored["precision"], card, form)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise wrong from None
    named = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not (named and version == str(FORMAT) and facts.image_size > 0):
        raise wrong
    check_names(names, f"{path}: ")
    if len(set(names)) < len(names):
        raise _changed(path, "two of its classes have the same name")
    if not _fits(session, form):
        raise wrong
    return facts


def _fits(session: Any, form: TokenFormat | None) -> bool:
    """Whether a file has the inputs and outputs of a detector."""
    inputs = {entry.name for entry in session.get_inputs()}
    optional = {entry.name for entry in session.get_overridable_initializers()}
    outputs = {entry.name for entry in session.get_outputs()}
    if not ("images" in inputs <= {"images", "seed"}):
        return False
    if form is None:
        return outputs >= set(_OUTPUTS)
    return outputs >= set(_SEQUENCE) and optional >= {"given_boxes", "given_labels", "wanted_classes"}


def _changed(path: Path, how: str) -> UserError:
    return UserError(f"{path} was changed since `boxwright export` wrote it: {how}.")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _usual_threads() -> int:
    """As many as other libraries take, which job schedulers set; 0 where nothing is set is one for each core."""
    text = os.environ.get("OMP_NUM_THREADS", "")
    return int(text) if text.isdecimal() else 0

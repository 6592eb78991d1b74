"""An exported detector: pixels in, boxes out, and nothing but onnxruntime in between."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from boxwright.classes import Class, class_positions
from boxwright.config import UserError, require
from boxwright.detections import Detections
from boxwright.extras import how_to_install
from boxwright.runtime.inputs import DecodedImage, Picture
from boxwright.runtime.predictor_base import BasePredictor, check_batch_size, check_threshold, chunks
from boxwright.runtime.sequence_reader import Sentence, TokenReader, given_arrays, told, wanted_array
from boxwright.runtime.sequence_types import GivenObjects, StreamObject, StreamToken, check_known, check_lists

FORMAT = 1  # of the files this reads; `boxwright export` writes it into them
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_OUTPUTS = ["boxes", "scores", "labels"]
_SENTENCE = [*_OUTPUTS, "order", "words", "word_log_probs"]


@dataclass(frozen=True)
class Facts:
    """What a file says of itself.

    Attributes:
        names: the classes, in the order of their positions.
        image_size: side of the canvas that images are fitted into, in pixels.
        model: which kind of detector.
        precision: fp32, fp16 or int8.
        card: how it was made.
        language: of a detector that writes; None of others.
    """

    names: tuple[str, ...]
    image_size: int
    model: str
    precision: str
    card: dict[str, Any]
    language: TokenReader | None = None


class Detector(BasePredictor):
    """Finds objects in images with a file that `boxwright export` wrote.

    Args:
        path: the ``.onnx`` file.
        device: auto, cpu or cuda, which needs the package ``onnxruntime-gpu``.
        seed: of what is drawn, for detectors that write sentences by drawing words. All images draw alike, so that what
            is found in an image doesn't depend on the others.
        threads: that compute one batch; 0 is one for each core.

    Raises:
        UserError: if there is no such file, it is no detector, cut short or of a newer version, or the device is not
            there.
    """

    def __init__(self, path: Path | str, device: str = "auto", seed: int = 0, threads: int = 0):
        self.path, self.seed = Path(path).expanduser(), seed
        require(isinstance(threads, int) and threads >= 0, f"threads is a whole number, 0 or more, not {threads!r}.")
        self._session = _open(self.path, device, threads)
        self.facts = _facts(self._session, self.path)
        self._draws = any(given.name == "seed" for given in self._session.get_inputs())

    @property
    def names(self) -> tuple[str, ...]:
        """The classes it knows."""
        return self.facts.names

    @property
    def image_size(self) -> int:
        """Side of the square canvas that images are fitted into, in pixels."""
        return self.facts.image_size

    @overload
    def predict(
        self,
        image: Picture,
        threshold: float = 0.5,
        batch_size: int = 8,
        classes: Class | Sequence[Class] | None = None,
        given: GivenObjects | None = None,
    ) -> Detections: ...
    @overload
    def predict(
        self,
        image: list[Any] | tuple[Any, ...],
        threshold: float = 0.5,
        batch_size: int = 8,
        classes: Class | Sequence[Class] | None = None,
        given: Sequence[GivenObjects] | None = None,
    ) -> list[Detections]: ...
    def predict(
        self,
        image: Picture | list[Any] | tuple[Any, ...],
        threshold: float = 0.5,
        batch_size: int = 8,
        classes: Class | Sequence[Class] | None = None,
        given: Any = None,
    ) -> Detections | list[Detections]:
        """The objects in an image, or in each of a list of images, best first, in pixels of the image.

        Args:
            image: a path, a PIL image, a numpy array (H, W, 3) uint8 in RGB order, or a list or tuple of any of these.
            threshold: objects with a score over this, in [0, 1).
            batch_size: how many images of a list are computed at once, if they have the same size.
            classes: the class to look for, by name or position in `names`, or several; by default all.
            given: objects that are known already, as (class, (x1, y1, x2, y2)) in pixels; the others are returned. For
                a list of images, a list for each. Only detectors that write sentences go on from them.

        Raises:
            UserError: if a file cannot be read, or an array is none of these; for a class that the detector doesn't
                know, a given box outside its image, or more of them than a sentence has room for.
        """
        check_threshold(threshold)
        check_batch_size(batch_size)
        wanted = class_positions(classes, self.names)
        if not isinstance(image, list | tuple):
            return self._detect([self.decode(image)], threshold, wanted, None if given is None else [given])[0]
        known = check_lists(given, len(image))
        found: list[Detections] = []
        for chunk in chunks(zip(image, known, strict=True), batch_size):
            ready = [self.decode(one) for one, _ in chunk]
            found += self._detect(ready, threshold, wanted, None if given is None else [own for _, own in chunk])
        return found

    def detect(
        self, ready: Sequence[DecodedImage], threshold: float, classes: Sequence[int] | None
    ) -> list[Detections]:
        """The objects in each of a batch of decoded images, those of one size together."""
        return self._detect(ready, threshold, classes)

    def _detect(
        self,
        ready: Sequence[DecodedImage],
        threshold: float,
        classes: Sequence[int] | None,
        given: Sequence[GivenObjects] | None = None,
    ) -> list[Detections]:
        found: dict[int, Detections] = {}
        for group in _of_one_size(ready):
            known = None if given is None else [given[i] for i in group]
            outputs = self._ask([ready[i] for i in group], _OUTPUTS, classes, known)
            for i, boxes_D4, scores_D, labels_D in zip(group, *outputs, strict=True):
                keep_D = scores_D > threshold
                if classes is not None:
                    keep_D &= np.isin(labels_D, classes)
                self._check_labels(labels_D[scores_D > threshold])
                boxes_N4 = _in_file(boxes_D4[keep_D], ready[i])
                found[i] = Detections(boxes_N4, scores_D[keep_D], labels_D[keep_D], self.names)
        return [found[i] for i in range(len(ready))]

    def _ask(
        self,
        ready: Sequence[DecodedImage],
        outputs: list[str],
        classes: Sequence[int] | None,
        given: Sequence[GivenObjects] | None,
    ) -> list[np.ndarray]:
        """What the file says of images of one size; a file that writes is told what is wanted, and what is known."""
        images_BHW3 = np.stack([np.asarray(one.image) for one in ready])
        language = self.facts.language
        if language is None:
            told = "only a detector that writes sentences can be given objects"
            require(given is None, f"{told}, and this is a {self.facts.model}; export a pix2seq or patchseq.")
            return self._run(images_BHW3, outputs)
        more = wanted_array(classes, self.names)
        if given is not None:
            known = [check_known(own, one.size, self.names) for own, one in zip(given, ready, strict=True)]
            more |= given_arrays(known, language.objects)
            sizes = [(one.image.size, one.size) for one in ready]
            more["given_boxes"] *= np.array([2 * image for image, _ in sizes], np.float32)[:, None]
            more["given_boxes"] /= np.array([2 * file for _, file in sizes], np.float32)[:, None]
        return self._run(images_BHW3, outputs, more)

    @property
    def writes(self) -> bool:
        """Whether it writes its objects one after the other, and can be watched (`write`)."""
        return self.facts.language is not None

    def write(
        self, picture: Any, given: GivenObjects = (), classes: Class | Sequence[Class] | None = None
    ) -> Iterator[StreamToken | StreamObject]:
        """As of `BasePredictor`, but that the whole sentence is computed before the first word is told."""
        language = self.facts.language
        if language is None:
            return super().write(picture, given, classes)
        wanted = class_positions(classes, self.names)
        ready = picture if isinstance(picture, DecodedImage) else self.decode(picture)
        *found, order_BN, words_BNS, log_probs_BNS = self._ask([ready], _SENTENCE, wanted, [given])
        self._check_labels(found[2][found[1] > 0])
        boxes_N4, scores_N, labels_N = (part[0] for part in found)
        said = Sentence(_in_file(boxes_N4, ready), scores_N, labels_N, order_BN[0], words_BNS[0], log_probs_BNS[0])
        return told(said, language, check_known(given, ready.size, self.names), self.names)

    def run(self, images_BHW3: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All that the file says of images of one size: boxes (B, D, 4), scores (B, D) and labels (B, D).

        Args:
            images_BHW3: uint8, RGB.

        Raises:
            UserError: where onnxruntime gives up, as for want of memory.
        """
        boxes_BD4, scores_BD, labels_BD = self._run(images_BHW3, _OUTPUTS)
        return boxes_BD4, scores_BD, labels_BD

    def _check_labels(self, labels: np.ndarray) -> None:
        if labels.size and not 0 <= labels.min() <= labels.max() < len(self.names):
            raise _changed(self.path, f"it has {len(self.names)} names, and finds class {labels.max()}, counted from 0")

    def _run(
        self, images_BHW3: np.ndarray, outputs: list[str], more: Mapping[str, np.ndarray] | None = None
    ) -> list[np.ndarray]:
        given = {"images": images_BHW3, **(more or {})}
        if self._draws:
            given["seed"] = np.full(len(images_BHW3), self.seed, np.int64)
        try:
            return self._session.run(outputs, given)
        except Exception as error:  # onnxruntime's errors have no common class but this one
            shape = " x ".join(map(str, np.shape(images_BHW3)))
            raise UserError(f"{self.path} can't be computed on images of {shape}: {_first_line(error)}") from error


def _of_one_size(ready: Sequence[DecodedImage]) -> Iterator[list[int]]:
    """Positions of the images, those of the same size together: a file takes images of one size at once."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i, one in enumerate(ready):
        groups.setdefault(one.image.size, []).append(i)
    yield from groups.values()


def _in_file(boxes_N4: np.ndarray, ready: DecodedImage) -> np.ndarray:
    """Boxes in pixels of the file, of which the image may be a reduced one."""
    if ready.size == ready.image.size:
        return boxes_N4
    limit_4 = np.array(ready.size * 2, np.float32)
    return np.minimum(boxes_N4 * (limit_4 / np.array(ready.image.size * 2, np.float32)), limit_4)


def _open(path: Path, device: str, threads: int) -> Any:
    require(path.is_file(), f"there is no file {path}.")
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise UserError(how_to_install(f"{path}", error.name)) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # its errors are raised as well, and are said once
    try:
        return onnxruntime.InferenceSession(path, options, providers=_providers(device))
    except UserError:
        raise
    except Exception as error:  # see `Detector.run`
        reason = f"onnxruntime {onnxruntime.__version__} says: {_first_line(error)}"
        raise UserError(f"{path} is no ONNX file, is cut short, or is newer than what runs it. {reason}") from error


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
    said = session.get_modelmeta().custom_metadata_map
    require("boxwright" in said, f"{path} is an ONNX file, but none that `boxwright export` wrote.")
    version = said["boxwright"]
    newer = version.isdecimal() and int(version) > FORMAT
    require(not newer, f"{path} is of format {version}, and this boxwright reads up to {FORMAT}; update boxwright.")
    wrong = _changed(path, "what it says of itself is not right")
    try:
        names, card = json.loads(said["names"]), json.loads(said["card"])
        language = TokenReader.from_json(said["sentence"]) if "sentence" in said else None
        facts = Facts(tuple(names), int(said["image_size"]), said["model"], said["precision"], card, language)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise wrong from None
    inputs = {given.name for given in session.get_inputs()}
    outputs = {output.name for output in session.get_outputs()}
    named = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not (named and version == str(FORMAT) and facts.image_size > 0):
        raise wrong
    if len(set(names)) < len(names):
        raise _changed(path, "two of its classes have the same name")
    optional = {given.name for given in session.get_overridable_initializers()}
    asked = language is None or optional >= {"given_boxes", "given_labels", "wanted_classes"}
    said_all = outputs >= set(_OUTPUTS if language is None else _SENTENCE)
    if not ("images" in inputs <= {"images", "seed"} and asked and said_all):
        raise wrong
    return facts


def _changed(path: Path, how: str) -> UserError:
    return UserError(f"{path} was changed since `boxwright export` wrote it: {how}.")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

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
from boxwright.runtime.finder import Finder, check_batch_size, check_threshold, chunks
from boxwright.runtime.pictures import Picture, Ready
from boxwright.runtime.sentence import Language, Sentence, given_arrays, told
from boxwright.runtime.writing import Known, Word, Written, check_known

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
    language: Language | None = None


class Detector(Finder):
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
    ) -> Detections: ...
    @overload
    def predict(
        self,
        image: list[Any] | tuple[Any, ...],
        threshold: float = 0.5,
        batch_size: int = 8,
        classes: Class | Sequence[Class] | None = None,
    ) -> list[Detections]: ...
    def predict(
        self,
        image: Picture | list[Any] | tuple[Any, ...],
        threshold: float = 0.5,
        batch_size: int = 8,
        classes: Class | Sequence[Class] | None = None,
    ) -> Detections | list[Detections]:
        """The objects in an image, or in each of a list of images, best first, in pixels of the image.

        Args:
            image: a path, a PIL image, a numpy array (H, W, 3) uint8 in RGB order, or a list or tuple of any of these.
            threshold: objects with a score over this, in [0, 1).
            batch_size: how many images of a list are computed at once, if they have the same size.
            classes: the class to look for, by name or position in `names`, or several; by default all.

        Raises:
            UserError: if a file cannot be read, or an array is none of these; for a class that the detector doesn't
                know.
        """
        check_threshold(threshold)
        check_batch_size(batch_size)
        wanted = class_positions(classes, self.names)
        if not isinstance(image, list | tuple):
            return self.detect([self.decode(image)], threshold, wanted)[0]
        found: list[Detections] = []
        for chunk in chunks(image, batch_size):
            found += self.detect([self.decode(one) for one in chunk], threshold, wanted)
        return found

    def detect(self, ready: Sequence[Ready], threshold: float, classes: Sequence[int] | None) -> list[Detections]:
        """The objects in each of a batch of decoded images, those of one size together."""
        found: dict[int, Detections] = {}
        for group in _of_one_size(ready):
            outputs = self.run(np.stack([np.asarray(ready[i].image) for i in group]))
            for i, boxes_D4, scores_D, labels_D in zip(group, *outputs, strict=True):
                keep_D = scores_D > threshold
                if classes is not None:
                    keep_D &= np.isin(labels_D, classes)
                self._check_labels(labels_D[scores_D > threshold])
                boxes_N4 = _in_file(boxes_D4[keep_D], ready[i])
                found[i] = Detections(boxes_N4, scores_D[keep_D], labels_D[keep_D], self.names)
        return [found[i] for i in range(len(ready))]

    @property
    def writes(self) -> bool:
        """Whether it writes its objects one after the other, and can be watched (`write`)."""
        return self.facts.language is not None

    def write(
        self, picture: Any, given: Known = (), classes: Class | Sequence[Class] | None = None
    ) -> Iterator[Word | Written]:
        """As of `Finder`, but that the whole sentence is computed before the first word is told, in all classes."""
        language = self.facts.language
        if language is None:
            return super().write(picture, given, classes)
        wanted = class_positions(classes, self.names)
        ready = picture if isinstance(picture, Ready) else self.decode(picture)
        known = check_known(given, ready.size, self.names)
        arrays = given_arrays(known, language.objects)
        scale_4 = np.array(ready.image.size * 2, np.float32) / np.array(ready.size * 2, np.float32)
        arrays["given_boxes"] *= scale_4
        *found, order_BN, words_BNS, log_probs_BNS = self._run(np.asarray(ready.image)[None], _SENTENCE, arrays)
        self._check_labels(found[2][found[1] > 0])
        boxes_N4, scores_N, labels_N = (part[0] for part in found)
        said = Sentence(_in_file(boxes_N4, ready), scores_N, labels_N, order_BN[0], words_BNS[0], log_probs_BNS[0])
        names = self.names if wanted is None else [self.names[n] for n in wanted]
        return _of_classes(told(said, language, known, self.names), names)

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
            shape = " x ".join(map(str, images_BHW3.shape))
            raise UserError(f"{self.path} can't be computed on images of {shape}: {_first_line(error)}") from error


def _of_classes(parts: Iterator[Word | Written], names: Sequence[str]) -> Iterator[Word | Written]:
    """Objects of these classes with their words, given ones and noise."""
    words: list[Word] = []
    for part in parts:
        if isinstance(part, Written):
            if part.given or part.name in names:
                yield from words
                yield part
            words = []
        else:
            words.append(part)
    yield from words  # of an object in which the sentence ends


def _of_one_size(ready: Sequence[Ready]) -> Iterator[list[int]]:
    """Positions of the images, those of the same size together: a file takes images of one size at once."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i, one in enumerate(ready):
        groups.setdefault(one.image.size, []).append(i)
    yield from groups.values()


def _in_file(boxes_N4: np.ndarray, ready: Ready) -> np.ndarray:
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
        language = Language.from_json(said["sentence"]) if "sentence" in said else None
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
    if not ("images" in inputs <= {"images", "seed"} and outputs >= set(_OUTPUTS if language is None else _SENTENCE)):
        raise wrong
    return facts


def _changed(path: Path, how: str) -> UserError:
    return UserError(f"{path} was changed since `boxwright export` wrote it: {how}.")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

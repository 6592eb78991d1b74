"""The test of every export: file and source predict the same images, and their predictions may hardly differ.

Both get the canvas that the file's letterbox makes, and that canvas is compared with Pillow's separately: one grey
level in a few pixels matters little to a detector, but can tip the choice between two tokens of equal probability.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
import onnxruntime
import torch
from PIL import Image

from boxwright.data.records import Record
from boxwright.deployment.onnx.letterbox import letterbox
from boxwright.deployment.onnx.to_onnx import CANVAS
from boxwright.evaluation.coco import renamed, score
from boxwright.evaluation.run import MAX_DETECTIONS
from boxwright.evaluation.thresholds import Choice
from boxwright.images import fit, open_image
from boxwright.runtime.onnx_detector import Detector as Exported
from boxwright.thresholds import Thresholds
from boxwright.types import Batch, Detections, Detector

MIN_SCORE = {"fp32": 0.05, "fp16": 0.5, "int8": 0.5}  # objects with lower scores are not compared one by one
BEST_OBJECTS = 10  # that are compared where no object reaches that score
SAME_OBJECT_PX = {"fp32": 0.5, "fp16": 4.0, "int8": 16.0}  # a box further away is another object
# The largest differences allowed:
BOX_PX = 0.01  # of an fp32 file's boxes, in pixels
SCORE = 0.001  # of its scores
GREY_LEVELS = 2  # of 255, of its resized image from Pillow's
AP_POINTS = {"fp32": 0.1, "fp16": 0.2, "int8": 1.0}  # of 100
TIED = 0.05  # share of images that rounding alone decides; one is always allowed
TRIES = 8  # to change the last bits of the source's weights
LAST_BIT = 2.0**-23  # of a float32, relative


@dataclass(frozen=True)
class Parity:
    """Differences between a file and its source. Fields are the keys of the stored report.

    Attributes:
        precision: of the file.
        images: number of images compared.
        spoken: the score above which objects are compared one by one.
        objects: objects above it, of the source.
        missing: objects above it that only one of the two predicts.
        box_px: largest difference of a side of a box, in pixels of the image, among objects that both predict.
        score: largest difference of their scores.
        ap_source, ap_file: AP in points of 100, over the classes that detector and annotation share; None without any
            such object.
        batch_missing: objects of the first image that the file predicts only when the image is alone in its batch, or
            only when it is not.
        batch_px: largest difference of a side of a box between the two batches.
        batch_score: largest difference of a score between them.
        grey: largest difference of a pixel of the file's canvas from Pillow's, of 255.
        tied: images left out of the comparison of objects: the source finds other objects in them, too, when the last
            bits of its weights change, as where two cells have the same score to seven digits.
        f1_source, f1_file: F1 in points of 100, at the score thresholds that the detector stores; None if it stores
            none, or without AP. Not limited: AP and scores are.
    """

    precision: str
    images: int
    spoken: float
    objects: int
    missing: int
    box_px: float
    score: float
    ap_source: float | None
    ap_file: float | None
    batch_missing: int
    batch_px: float
    batch_score: float
    grey: int
    tied: int = 0
    f1_source: float | None = None
    f1_file: float | None = None

    @property
    def faults(self) -> list[str]:
        """A sentence for each difference that is not allowed."""
        found = []
        if self.precision == "fp32":
            if self.missing:
                found.append(f"{self.missing} objects are predicted by only one of the two")
            if self.box_px > BOX_PX:
                found.append(f"boxes differ by up to {self.box_px:.4f} px, and {BOX_PX} are allowed")
            if self.score > SCORE:
                found.append(f"scores differ by up to {self.score:.5f}, and {SCORE} is allowed")
            if self.batch_missing or self.batch_px > BOX_PX or self.batch_score > SCORE:
                others = f"boxes differ by up to {self.batch_px:.4f} px and scores by {self.batch_score:.5f}"
                found.append(f"beside another image {self.batch_missing} objects change, {others}")
        if self.tied > max(1, TIED * self.images):
            found.append(f"rounding alone decides what the source finds in {self.tied} of {self.images} images")
        if self.grey > GREY_LEVELS:
            found.append(f"resized pixels differ from Pillow's by up to {self.grey} grey levels")
        if self.ap_source is None or self.ap_file is None:
            if self.precision != "fp32":
                found.append("no image has an object of a class that the detector knows, so AP does not tell")
        else:
            change, allowed = abs(self.ap_source - self.ap_file), AP_POINTS[self.precision]
            if self.precision != "fp32" and self.ap_source < allowed:
                found.append(
                    f"AP of the source is {self.ap_source:.2f}, so it does not tell what {self.precision} costs"
                )
            if change > allowed:
                found.append(
                    f"AP went from {self.ap_source:.2f} to {self.ap_file:.2f}, and {allowed} points are allowed"
                )
        return found

    def to_markdown(self, name: str) -> str:
        """The report as a page; `name` is that of the file."""
        ap = "| AP, source and file | no annotated object of a class that the detector knows |"
        if self.ap_source is not None:
            ap = f"| AP, source and file | {self.ap_source:.2f} and {self.ap_file:.2f} |"
        rows = [
            f"| precision | {self.precision} |",
            f"| images | {self.images} |",
            f"| objects that the source scores above {self.spoken:.2g} | {self.objects} |",
            f"| objects above it that only one of the two predicts | {self.missing} |",
            f"| largest difference of a box | {self.box_px:.5f} px |",
            f"| largest difference of a score | {self.score:.6f} |",
            f"| largest difference of a box beside another image | {self.batch_px:.5f} px |",
            f"| largest difference of a score beside another image | {self.batch_score:.6f} |",
            f"| images left out above, as rounding alone decides what the source finds in them | {self.tied} |",
            f"| largest difference of a resized pixel from Pillow's | {self.grey} of 255 |",
            ap,
        ]
        if self.f1_source is not None:
            f1 = f"{self.f1_source:.2f} and {self.f1_file:.2f}"
            rows.append(f"| F1 at the stored thresholds, source and file | {f1} |")
        return "\n".join([f"# {name} compared with its source", "", "| what | value |", "| --- | --- |", *rows, ""])

    def to_json(self) -> str:
        """The report as JSON: the fields, and whether the file `passed`."""
        return json.dumps(asdict(self) | {"passed": not self.faults}, indent=1) + "\n"


def compare(
    file: Exported, detector: Detector, precision: str, records: Sequence[Record], names: Sequence[str] | None
) -> Parity:
    """Measure how far the predictions of a file and of its source differ.

    Args:
        file: the export.
        detector: its source, on the CPU, in evaluation mode.
        precision: of the file.
        records: the images.
        names: the classes of their annotation; None to leave out AP.
    """
    letterboxed, near = _Letterbox(detector), SAME_OBJECT_PX[precision]
    sources, files, shapes, canvases, in_a_batch, grey = [], [], [], [], [], 0
    for image_HW3 in decode_images(records, detector.image_size):
        canvas_1CHW, size_2 = letterboxed(image_HW3)
        grey = max(grey, _grey_difference(canvas_1CHW, image_HW3, detector.image_size))
        canvases.append(_Canvas(canvas_1CHW, size_2, image_HW3.shape[:2]))
        sources.append(_predict_canvas(detector, canvases[-1]))
        files.append(first_detections(file.run(image_HW3[None]), detector))
        shapes.append(image_HW3.shape)
        if not in_a_batch:
            outputs = file.run(np.stack([image_HW3[:, ::-1], image_HW3]))
            in_a_batch.append(first_detections(tuple(each[1:] for each in outputs), detector))
    min_score = compared_above(precision, sources)
    differences, tied = [], 0
    for source, exported, canvas in zip(sources, files, canvases, strict=True):
        difference = _differences(source, exported, min_score, near)
        if precision == "fp32" and difference.too_large and _is_tied(detector, canvas, source, min_score, near):
            tied += 1
        else:
            differences.append(difference)
    batch_missing, batch_px, batch_score = _differences(files[0], in_a_batch[0], min_score, near)
    in_file_pixels = [[*map(to_file_pixels, found, shapes, records)] for found in (sources, files)]
    ap_source, ap_file = (
        None if names is None else average_precision(records, found, names, detector) for found in in_file_pixels
    )
    f1_source, f1_file = (
        None if ap_source is None or names is None else f1_at_thresholds(records, found, names, detector)
        for found in in_file_pixels
    )
    return Parity(
        precision=precision,
        images=len(sources),
        spoken=min_score,
        objects=sum(len(source.above(min_score)) for source in sources),
        missing=sum(each.missing for each in differences),
        box_px=max((each.box_px for each in differences), default=0.0),
        score=max((each.score for each in differences), default=0.0),
        ap_source=ap_source,
        ap_file=ap_file,
        batch_missing=batch_missing,
        batch_px=batch_px,
        batch_score=batch_score,
        grey=grey,
        tied=tied,
        f1_source=f1_source,
        f1_file=f1_file,
    )


def compared_above(precision: str, found: Sequence[Detections]) -> float:
    """The score above which objects are compared: `MIN_SCORE`, or less where no image has such an object."""
    usual = MIN_SCORE[precision]
    if any(len(each.above(usual)) for each in found):
        return usual
    scores = np.sort(np.concatenate([each.scores_N for each in found]))[::-1]
    return float(scores[min(BEST_OBJECTS, len(scores)) - 1]) * (1 - 1e-6) if len(scores) else usual


class _Letterbox:
    """The letterbox of a file: image (H, W, 3) in, canvas (1, 3, h, w) and the size (2,) of its valid area out."""

    def __init__(self, detector: Detector):
        model = letterbox(detector.image_size, detector.square_canvas)
        self.session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    def __call__(self, image_HW3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        canvas_1CHW, size_2, _ = self.session.run(CANVAS, {"images": image_HW3[None]})
        return np.asarray(canvas_1CHW), np.asarray(size_2)


def _grey_difference(canvas_1CHW: np.ndarray, image_HW3: np.ndarray, side: int) -> int:
    """The largest difference of a pixel from the image that Pillow resizes, in grey levels."""
    pillow_SS3, (height, width) = fit(Image.fromarray(image_HW3), side)
    ours_HW3 = canvas_1CHW[0, :, :height, :width].transpose(1, 2, 0).astype(int)
    return int(np.abs(ours_HW3 - pillow_SS3[:height, :width]).max())


def decode_images(records: Sequence[Record], side: int) -> Iterator[np.ndarray]:
    """The images (H, W, 3), decoded as the predictor does it."""
    for record in records:
        yield np.asarray(open_image(record.path, side))


def predict_with_torch(detector: Detector, image_HW3: np.ndarray) -> Detections:
    """The source's detections in an image that Pillow resizes."""
    canvas_SS3, size = fit(Image.fromarray(image_HW3), detector.image_size)
    canvas = _Canvas(canvas_SS3.transpose(2, 0, 1)[None], np.array(size), image_HW3.shape[:2])
    return _predict_canvas(detector, canvas)


class _Canvas(NamedTuple):
    """An image as a detector gets it.

    Attributes:
        pixels_1CHW: uint8.
        size_2: height and width of the valid area.
        original: height and width of the image before it was resized.
    """

    pixels_1CHW: np.ndarray
    size_2: np.ndarray
    original: tuple[int, ...]


@torch.inference_mode()
def _predict_canvas(detector: Detector, canvas: _Canvas) -> Detections:
    """The source's detections, all with a score above 0; the detector is on the CPU and in evaluation mode."""
    none = torch.zeros(1, 0)
    batch = Batch(
        torch.from_numpy(canvas.pixels_1CHW),
        torch.from_numpy(canvas.size_2)[None],
        torch.tensor([canvas.original]),
        none,
        none,
        none,
        none,
    )
    predictions = detector.decode(detector(batch.images_BCHW, batch.sizes_B2))
    return predictions.to_detections(batch, detector.names)[0]


def first_detections(outputs: tuple[np.ndarray, ...], detector: Detector) -> Detections:
    """A file's detections in the first image of a batch, all with a score above 0.

    Args:
        outputs: boxes, scores and labels of the batch.
        detector: whose class names they get.
    """
    boxes_D4, scores_D, labels_D = (each[0] for each in outputs)
    keep_D = scores_D > 0
    return Detections(boxes_D4[keep_D], scores_D[keep_D], labels_D[keep_D], detector.names)


class _Difference(NamedTuple):
    """Objects that only one of two has; largest difference of a box in pixels, and of a score, of those in both."""

    missing: int
    box_px: float
    score: float

    @property
    def too_large(self) -> bool:
        """Whether a file in fp32 may not differ so much."""
        return bool(self.missing) or self.box_px > BOX_PX or self.score > SCORE


def _differences(one: Detections, other: Detections, min_score: float, near: float) -> _Difference:
    """How far two lists of objects differ.

    Args:
        one: of one image.
        other: of the same image.
        min_score: only objects above it are looked for in the other.
        near: pixels that the sides of the same object may be apart. Of the objects of its class, the same object is the
            nearest one by box and score.
    """
    missing, box_px, score = 0, 0.0, 0.0
    for wanted, others in ((one, other), (other, one)):
        wanted = wanted.above(min_score)
        if not len(others):
            missing += len(wanted)
            continue
        apart_NM = np.abs(wanted.boxes_N4[:, None] - others.boxes_N4[None]).max(-1)
        apart_NM = np.where(wanted.labels_N[:, None] == others.labels_N[None], apart_NM, np.inf)
        changed_NM = np.abs(wanted.scores_N[:, None] - others.scores_N[None])
        nearest_N = (apart_NM + near * changed_NM).argmin(1)
        rows = np.arange(len(wanted))
        apart_N, changed_N = apart_NM[rows, nearest_N], changed_NM[rows, nearest_N]
        same_N = apart_N < near
        missing += int((~same_N).sum())
        box_px = max(box_px, float(apart_N[same_N].max(initial=0)))
        score = max(score, float(changed_N[same_N].max(initial=0)))
    return _Difference(missing, box_px, score)


def _is_tied(detector: Detector, canvas: _Canvas, source: Detections, min_score: float, near: float) -> bool:
    """Whether the source finds something else in a canvas, too, when the last bits of its weights change.

    The arguments are those of `_predict_canvas` and `_differences`.
    """
    for seed in range(TRIES):
        with _other_last_bits(detector, seed):
            other = _predict_canvas(detector, canvas)
        if _differences(source, other, min_score, near).too_large:
            return True
    return False


@contextmanager
def _other_last_bits(detector: Detector, seed: int) -> Iterator[None]:
    """Multiply each weight by 1 or by the next number above or below it, at random; afterwards they are as before."""
    generator = torch.Generator().manual_seed(seed)
    parameters = [p.data for p in detector.parameters() if p.is_floating_point()]
    kept = [p.clone() for p in parameters]
    try:
        for p in parameters:
            p.mul_(1 + LAST_BIT * torch.randint(-1, 2, p.shape, generator=generator).to(p))
        yield
    finally:
        for p, before in zip(parameters, kept, strict=True):
            p.copy_(before)


def average_precision(
    records: Sequence[Record], found: Sequence[Detections], names: Sequence[str], detector: Detector
) -> float | None:
    """AP in points of 100, of the best `MAX_DETECTIONS` boxes of each image; None without objects of a shared class.

    Args:
        records: the images, whose classes are `names`.
        found: detections in them, in pixels of their files.
        names: the classes of the annotation.
        detector: AP counts the classes that it shares with the annotation.
    """
    rows = slice(MAX_DETECTIONS)
    best = [Detections(each.boxes_N4[rows], each.scores_N[rows], each.labels_N[rows], each.names) for each in found]
    per_class = score(records, [renamed(each, names) for each in best], names).per_class
    shared = [row["ap"] for name, row in per_class.items() if name in detector.names and row["ap"] >= 0]
    return 100 * sum(shared) / len(shared) if shared else None


def f1_at_thresholds(
    records: Sequence[Record], found: Sequence[Detections], names: Sequence[str], detector: Detector
) -> float | None:
    """F1 in points of 100, each class at the score threshold that the detector stores; None if it stores none.

    The arguments are those of `average_precision`.
    """
    thresholds = Thresholds.from_card(detector.card)
    if not thresholds.chosen_on:
        return None
    report = score(records, [renamed(each, names) for each in found], names).thresholds
    return 100 * report.overall(Choice(None, thresholds), each=True).in_use.f1


def to_file_pixels(found: Detections, shape: tuple[int, ...], record: Record) -> Detections:
    """Detections in pixels of an image's file.

    Args:
        found: in pixels of the decoded image.
        shape: of the decoded image, height first; JPEGs may be decoded at a fraction of their size.
        record: the file.
    """
    factor_2 = record.width / shape[1], record.height / shape[0]
    boxes_N4 = (found.boxes_N4 * np.array(factor_2 * 2)).astype(np.float32)
    return Detections(boxes_N4, found.scores_N, found.labels_N, found.names)

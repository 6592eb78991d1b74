"""The gate behind every export: the file and its source look at the same images, and must say the same.

Both look at the canvas that the file's letterbox makes, which is compared with Pillow's by itself: a grey level more in
a few pixels is nothing to a detector, but enough to tip the choice between two words that are equally probable.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import onnxruntime
import torch
from PIL import Image

from boxwright.data.records import Record
from boxwright.deployment.onnx.letterbox import letterbox
from boxwright.deployment.onnx.to_onnx import CANVAS, pads
from boxwright.evaluation.coco import renamed, score
from boxwright.evaluation.run import MAX_DETECTIONS
from boxwright.images import fit, open_image
from boxwright.runtime.onnx_detector import Detector as Exported
from boxwright.types import Batch, Detections, Detector

SPOKEN = {"fp32": 0.05, "fp16": 0.5, "int8": 0.5}  # objects with lower scores are not compared one by one
FEW = 10  # objects that are compared where none has such a score
NEAR = {"fp32": 0.5, "fp16": 4.0, "int8": 16.0}  # pixels: a box further away is another object
PIXELS = 0.01  # by which a box may move, of an fp32 file
SCORE = 0.001  # by which its score may
GREY = 2  # grey levels of 255 by which its resized image may differ from Pillow's
POINTS = {"fp32": 0.1, "fp16": 0.2, "int8": 1.0}  # of 100, by which AP may move


@dataclass(frozen=True)
class Parity:
    """How far a file is from its source.

    Attributes:
        precision: of the file.
        images: that both looked at.
        spoken: the score over which objects are compared one by one.
        objects: that the source scores over it.
        missing: objects over it that only one of the two says.
        box_px: the most that a side of a box moved, in pixels of the image; of objects that both say.
        score: the most that a score changed.
        ap_source, ap_file: AP in points of 100, over the classes that both detector and images have; None without any
            such object.
        batch_missing: objects of the first image that are said only alone, or only if it is not alone in its batch.
        batch_px: the most that a side of the others moves.
        batch_score: the most that a score of theirs changes.
        grey: the most that a pixel of the file's canvas differs from Pillow's, of 255.
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

    @property
    def faults(self) -> list[str]:
        """What is beyond the tolerance, in words; empty if nothing is."""
        found = []
        if self.precision == "fp32":
            if self.missing:
                found.append(f"{self.missing} objects are said by only one of the two")
            if self.box_px > PIXELS:
                found.append(f"boxes moved by up to {self.box_px:.4f} px, and {PIXELS} are allowed")
            if self.score > SCORE:
                found.append(f"scores moved by up to {self.score:.5f}, and {SCORE} is allowed")
            if self.batch_missing or self.batch_px > PIXELS or self.batch_score > SCORE:
                moved = f"boxes move by up to {self.batch_px:.4f} px and scores by {self.batch_score:.5f}"
                found.append(f"beside another image {self.batch_missing} objects change, {moved}")
        if self.grey > GREY:
            found.append(f"resized pixels differ from Pillow's by up to {self.grey} grey levels")
        if self.ap_source is None or self.ap_file is None:
            if self.precision != "fp32":
                found.append("no image has an object of a class that the detector knows, so AP does not tell")
        else:
            moved, most = abs(self.ap_source - self.ap_file), POINTS[self.precision]
            if self.precision != "fp32" and self.ap_source < most:
                found.append(
                    f"AP of the source is {self.ap_source:.2f}, so it does not tell what {self.precision} costs"
                )
            if moved > most:
                found.append(f"AP went from {self.ap_source:.2f} to {self.ap_file:.2f}, and {most} points are allowed")
        return found

    def to_markdown(self, name: str) -> str:
        """A page for whoever finds the file."""
        ap = "| AP, source and file | no annotated object of a class that the detector knows |"
        if self.ap_source is not None:
            ap = f"| AP, source and file | {self.ap_source:.2f} and {self.ap_file:.2f} |"
        rows = [
            f"| precision | {self.precision} |",
            f"| images | {self.images} |",
            f"| objects that the source scores over {self.spoken:.2g} | {self.objects} |",
            f"| objects over it that only one of the two says | {self.missing} |",
            f"| most that a box moved | {self.box_px:.5f} px |",
            f"| most that a score moved | {self.score:.6f} |",
            f"| most that a box moves beside another image | {self.batch_px:.5f} px |",
            f"| most that a score moves beside another image | {self.batch_score:.6f} |",
            f"| most that a resized pixel differs from Pillow's | {self.grey} of 255 |",
            ap,
        ]
        return "\n".join([f"# {name} beside its source", "", "| what | value |", "| --- | --- |", *rows, ""])

    def to_json(self) -> str:
        """The same for programs."""
        return json.dumps(asdict(self) | {"passed": not self.faults}, indent=1) + "\n"


def compare(
    file: Exported, detector: Detector, precision: str, records: Sequence[Record], names: Sequence[str] | None
) -> Parity:
    """Let both look at these images.

    Args:
        file: the export.
        detector: its source, on the CPU, in evaluation mode.
        precision: of the file.
        records: the images.
        names: the classes of the annotation; None if it is not to be scored.
    """
    fitted, near = _Letterbox(detector), NEAR[precision]
    sources, files, shapes, in_company, grey = [], [], [], [], 0
    for image_HW3 in images(records, detector.image_size):
        canvas_1CHW, size_2 = fitted(image_HW3)
        grey = max(grey, _grey(canvas_1CHW, image_HW3, detector.image_size))
        sources.append(answer(detector, canvas_1CHW, size_2, image_HW3.shape[:2]))
        files.append(first(file.run(image_HW3[None]), detector))
        shapes.append(image_HW3.shape)
        if not in_company:
            together = file.run(np.stack([image_HW3[:, ::-1], image_HW3]))
            in_company.append(first(tuple(part[1:] for part in together), detector))
    spoken = spoken_over(precision, sources)
    moved = [_moved(source, said, spoken, near) for source, said in zip(sources, files, strict=True)]
    beside = _moved(files[0], in_company[0], spoken, near)
    ap_source, ap_file = (
        None if names is None else average_precision(records, [*map(in_file, said, shapes, records)], names, detector)
        for said in (sources, files)
    )
    return Parity(
        precision=precision,
        images=len(sources),
        spoken=spoken,
        objects=sum(len(source.above(spoken)) for source in sources),
        missing=sum(missing for missing, _, _ in moved),
        box_px=max(box_px for _, box_px, _ in moved),
        score=max(score for _, _, score in moved),
        ap_source=ap_source,
        ap_file=ap_file,
        batch_missing=beside[0],
        batch_px=beside[1],
        batch_score=beside[2],
        grey=grey,
    )


def spoken_over(precision: str, found: Sequence[Detections]) -> float:
    """The score over which objects are compared: `SPOKEN`, or less where no image has such an object."""
    usual = SPOKEN[precision]
    if any(len(one.above(usual)) for one in found):
        return usual
    scores = np.sort(np.concatenate([one.scores_N for one in found]))[::-1]
    return float(scores[min(FEW, len(scores)) - 1]) * (1 - 1e-6) if len(scores) else usual


class _Letterbox:
    """The letterbox of a file, alone: the canvas (1, 3, h, w) and height and width of its part that is image, (2,)."""

    def __init__(self, detector: Detector):
        model = letterbox(detector.image_size, pads(detector))
        self.session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    def __call__(self, image_HW3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        canvas_1CHW, size_2, _ = self.session.run(CANVAS, {"images": image_HW3[None]})
        return np.asarray(canvas_1CHW), np.asarray(size_2)


def _grey(canvas_1CHW: np.ndarray, image_HW3: np.ndarray, side: int) -> int:
    """The most that a pixel differs from what Pillow makes of the image."""
    pillow_SS3, (height, width) = fit(Image.fromarray(image_HW3), side)
    ours_HW3 = canvas_1CHW[0, :, :height, :width].transpose(1, 2, 0).astype(int)
    return int(np.abs(ours_HW3 - pillow_SS3[:height, :width]).max())


def images(records: Sequence[Record], side: int) -> Iterator[np.ndarray]:
    """The images (H, W, 3), decoded as the predictor does it."""
    for record in records:
        yield np.asarray(open_image(record.path, side))


def eager(detector: Detector, image_HW3: np.ndarray) -> Detections:
    """What the source says of an image that Pillow has resized."""
    canvas_SS3, size = fit(Image.fromarray(image_HW3), detector.image_size)
    return answer(detector, canvas_SS3.transpose(2, 0, 1)[None], np.array(size), image_HW3.shape[:2])


@torch.inference_mode()
def answer(detector: Detector, canvas_1CHW: np.ndarray, size_2: np.ndarray, original: tuple[int, ...]) -> Detections:
    """What the source says of a canvas, every row of it that means something.

    Args:
        detector: on the CPU, in evaluation mode.
        canvas_1CHW: uint8.
        size_2: height and width of the part of it that is image.
        original: height and width of the image before it was resized.
    """
    none = torch.zeros(1, 0)
    batch = Batch(
        torch.from_numpy(canvas_1CHW), torch.from_numpy(size_2)[None], torch.tensor([original]), none, none, none, none
    )
    said = detector.decode(detector(batch.images_BCHW, batch.sizes_B2))
    return said.to_detections(batch, detector.names)[0]


def first(said: tuple[np.ndarray, ...], detector: Detector) -> Detections:
    """What a file says of the first image of a batch, every row of it that means something."""
    boxes_D4, scores_D, labels_D = (part[0] for part in said)
    keep_D = scores_D > 0
    return Detections(boxes_D4[keep_D], scores_D[keep_D], labels_D[keep_D], detector.names)


def _moved(one: Detections, other: Detections, spoken: float, near: float) -> tuple[int, float, float]:
    """Objects over a score that only one of the two says; how far the others' boxes and scores are apart.

    The same object is one of the same class whose box and score are nearest, and the box near.
    """
    missing, box_px, score = 0, 0.0, 0.0
    for asked, told in ((one, other), (other, one)):
        asked = asked.above(spoken)
        apart_NM = np.abs(asked.boxes_N4[:, None] - told.boxes_N4[None]).max(-1)
        apart_NM = np.where(asked.labels_N[:, None] == told.labels_N[None], apart_NM, np.inf)
        changed_NM = np.abs(asked.scores_N[:, None] - told.scores_N[None])
        if not len(told):
            missing += len(asked)
            continue
        nearest_N = (apart_NM + near * changed_NM).argmin(1)
        rows = np.arange(len(asked))
        apart_N, changed_N = apart_NM[rows, nearest_N], changed_NM[rows, nearest_N]
        there_N = apart_N < near
        missing += int((~there_N).sum())
        box_px = max(box_px, float(apart_N[there_N].max(initial=0)))
        score = max(score, float(changed_N[there_N].max(initial=0)))
    return missing, box_px, score


def average_precision(
    records: Sequence[Record], found: Sequence[Detections], names: Sequence[str], detector: Detector
) -> float | None:
    """AP in points of 100, over the classes that both have; None without any. `MAX_DETECTIONS` per image count.

    Args:
        records: the images, whose classes are `names`.
        found: in them, in pixels of their files.
        names: these classes.
        detector: whose classes are shared.
    """
    best = [
        Detections(
            one.boxes_N4[:MAX_DETECTIONS], one.scores_N[:MAX_DETECTIONS], one.labels_N[:MAX_DETECTIONS], one.names
        )
        for one in found
    ]
    per_class = score(records, [renamed(one, names) for one in best], names).per_class
    shared = [row["ap"] for name, row in per_class.items() if name in detector.names and row["ap"] >= 0]
    return 100 * sum(shared) / len(shared) if shared else None


def in_file(found: Detections, shape: tuple[int, ...], record: Record) -> Detections:
    """In pixels of a file whose image may have been decoded reduced, to this height and width."""
    factor_2 = record.width / shape[1], record.height / shape[0]
    boxes_N4 = (found.boxes_N4 * np.array(factor_2 * 2)).astype(np.float32)
    return Detections(boxes_N4, found.scores_N, found.labels_N, found.names)

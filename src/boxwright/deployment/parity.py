"""The gate behind every export: the file and its source look at the same images, and must say the same."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from PIL import Image

from boxwright.data.images import fit, open_image
from boxwright.data.records import Record
from boxwright.deployment.graph import OUTPUTS
from boxwright.evaluation.coco import score
from boxwright.evaluation.evaluate import renamed
from boxwright.evaluation.run import MOST
from boxwright.types import Batch, Detections, Detector

SPOKEN = {"fp32": 0.05, "fp16": 0.5, "int8": 0.5}  # objects with lower scores are not compared one by one
NEAR = {"fp32": 0.5, "fp16": 4.0, "int8": 16.0}  # pixels: a box further away is another object
PIXELS = 0.01  # by which a box may move, of an fp32 file
SCORE = 0.001  # by which its score may
POINTS = {"fp32": 0.1, "fp16": 0.2, "int8": 1.0}  # of 100, by which AP may move


@dataclass(frozen=True)
class Parity:
    """How far a file is from its source.

    Attributes:
        precision: of the file.
        images: that both looked at.
        objects: that the source scores over `SPOKEN`.
        missing: objects over `SPOKEN` that only one of the two says.
        box_px: the most that a side of a box moved, in pixels of the image; of objects that both say.
        score: the most that a score changed.
        ap_source, ap_file: AP in points of 100; None without annotated images.
        batch_px: the most that a side moves if the image is not alone in its batch.
    """

    precision: str
    images: int
    objects: int
    missing: int
    box_px: float
    score: float
    ap_source: float | None
    ap_file: float | None
    batch_px: float

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
            if self.batch_px > PIXELS:
                found.append(f"in a batch boxes move by up to {self.batch_px:.4f} px")
        if self.ap_source is not None and self.ap_file is not None:
            moved, most = abs(self.ap_source - self.ap_file), POINTS[self.precision]
            if moved > most:
                found.append(f"AP went from {self.ap_source:.2f} to {self.ap_file:.2f}, and {most} points are allowed")
        return found

    def to_markdown(self, name: str) -> str:
        """A page for whoever finds the file."""
        ap = "| AP, source and file | no annotated images |"
        if self.ap_source is not None:
            ap = f"| AP, source and file | {self.ap_source:.2f} and {self.ap_file:.2f} |"
        rows = [
            f"| precision | {self.precision} |",
            f"| images | {self.images} |",
            f"| objects that the source scores over {SPOKEN[self.precision]} | {self.objects} |",
            f"| objects over it that only one of the two says | {self.missing} |",
            f"| most that a box moved | {self.box_px:.5f} px |",
            f"| most that a score moved | {self.score:.6f} |",
            f"| most that a box moves in a batch | {self.batch_px:.5f} px |",
            ap,
        ]
        return "\n".join([f"# {name} beside its source", "", "| what | value |", "| --- | --- |", *rows, ""])

    def to_json(self) -> str:
        """The same for programs."""
        return json.dumps(asdict(self) | {"passed": not self.faults}, indent=1) + "\n"


class File:
    """An exported file, opened: the same images in, the same boxes out.

    Args:
        file: a path, or the bytes of a file.
        threads: that compute; 0 for all cores.
        seed: of the draws, where any are made.
    """

    def __init__(self, file: Path | bytes, threads: int = 0, seed: int = 0):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        source = str(file) if isinstance(file, Path) else file
        self.session, self.seed = (
            onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"]),
            seed,
        )
        self.draws = any(value.name == "seed" for value in self.session.get_inputs())

    def __call__(self, images_BHW3: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes, scores and labels of all rows."""
        seeds = {"seed": np.full(len(images_BHW3), self.seed, np.int64)} if self.draws else {}
        boxes_BD4, scores_BD, labels_BD = self.session.run(OUTPUTS, {"images": images_BHW3} | seeds)
        return np.asarray(boxes_BD4), np.asarray(scores_BD), np.asarray(labels_BD)


def compare(
    file: File, detector: Detector, precision: str, records: Sequence[Record], names: Sequence[str] | None
) -> Parity:
    """Let both look at these images.

    Args:
        file: the export.
        detector: its source, on the CPU, in evaluation mode.
        precision: of the file.
        records: the images.
        names: the classes of the annotation; None if it is not to be scored.
    """
    pairs, batch_px = [], 0.0
    for number, image_HW3 in enumerate(images(records, detector.image_size)):
        source, said = eager(detector, image_HW3), first(file(image_HW3[None]), detector)
        pairs.append((source, said))
        if number == 0:
            mirrored_2HW3 = np.stack([image_HW3[:, ::-1], image_HW3])
            together = first(tuple(part[1:] for part in file(mirrored_2HW3)), detector)
            batch_px = float(
                np.abs(together.boxes_N4 - said.boxes_N4)[said.scores_N > SPOKEN[precision]].max(initial=0)
            )
    moved = [_moved(source, said, SPOKEN[precision], NEAR[precision]) for source, said in pairs]
    ap_source, ap_file = (
        (None, None)
        if names is None
        else (average_precision(records, [pair[side] for pair in pairs], names, detector.image_size) for side in (0, 1))
    )
    return Parity(
        precision=precision,
        images=len(pairs),
        objects=sum(int((source.scores_N > SPOKEN[precision]).sum()) for source, _ in pairs),
        missing=sum(missing for missing, _, _ in moved),
        box_px=max(box_px for _, box_px, _ in moved),
        score=max(score for _, _, score in moved),
        ap_source=ap_source,
        ap_file=ap_file,
        batch_px=batch_px,
    )


def images(records: Sequence[Record], side: int) -> Iterator[np.ndarray]:
    """The images (H, W, 3), decoded as the predictor does it."""
    for record in records:
        yield np.asarray(open_image(record.path, side))


@torch.inference_mode()
def eager(detector: Detector, image_HW3: np.ndarray) -> Detections:
    """What the source says, every row of it that means something."""
    canvas_SS3, size = fit(Image.fromarray(image_HW3), detector.image_size)
    none = torch.zeros(1, 0)
    batch = Batch(
        torch.from_numpy(canvas_SS3).permute(2, 0, 1)[None], torch.tensor([size]),
        torch.tensor([image_HW3.shape[:2]]), none, none, none, none,
    )  # fmt: skip
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


def average_precision(records: Sequence[Record], found: Sequence[Detections], names: Sequence[str], side: int) -> float:
    """AP in points of 100, of the best `MOST` boxes of each image."""
    best = [_scaled(one, record, side) for one, record in zip(found, records, strict=True)]
    return 100 * score(records, [renamed(one, names) for one in best], names).ap


def _scaled(found: Detections, record: Record, side: int) -> Detections:
    """In pixels of the file, which `open_image` may have decoded reduced."""
    image = open_image(record.path, side)
    factor = record.width / image.width, record.height / image.height
    boxes_N4 = (found.boxes_N4 * np.array([*factor, *factor])).astype(np.float32)
    return Detections(boxes_N4[:MOST], found.scores_N[:MOST], found.labels_N[:MOST], found.names)

"""What a call of `predict` is to do: any process can do it, or a part of it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from PIL import Image

from boxwright.checkpoints.locate import exported_at, find_weights, is_exported
from boxwright.classes import class_positions, split_classes
from boxwright.config import UserError, require
from boxwright.drawing import draw
from boxwright.files import name_as_text, write_whole
from boxwright.images import open_image
from boxwright.inference.open_detector import open_detector
from boxwright.inference.parts import Manifest, Part, done, fingerprint, write_manifest, write_part
from boxwright.inference.source_images import ImageFile, source_images
from boxwright.inference.summary import Summary
from boxwright.runtime.coco import Records, coco_records
from boxwright.runtime.predictor_base import ImageResult, check_batch_size, check_threshold
from boxwright.runtime.tiles import Tiling

_FORMATS = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png", ".webp": "webp"}


@dataclass(frozen=True)
class Job:
    """The arguments of `predict`, see there."""

    weights: Path | str
    source: Path | str
    out: Path
    threshold: float | None
    overlays: bool
    classes: list[str] | str | None
    batch_size: int
    device: str
    save: Literal["txt"] | None = None
    tile: int | None = None
    overlap: float = 0.2

    def __post_init__(self) -> None:
        if self.threshold is not None:
            check_threshold(self.threshold)
        check_batch_size(self.batch_size)
        if self.tile is not None:
            Tiling(self.tile, self.overlap)
        require(self.save in (None, "txt"), f"--save is txt, YOLO's label files, not {self.save!r}.")

    def images(self) -> dict[ImageFile, str]:
        """The images, and the short name of each."""
        return source_images(self.source, self.out)


class Worker:
    """Holds the detector of a job, and detects.

    Args:
        job: what to do.
        images: those of the job, with their names; empty for a video.

    Raises:
        UserError: if there is no such detector, or it does not know a class.
    """

    def __init__(self, job: Job, images: dict[ImageFile, str]):
        self.job, self.images, self._name_of = job, list(images), images
        self._stems = (
            Counter(PurePosixPath(name).with_suffix("") for name in images.values()) if job.save else Counter()
        )
        self.predictor = open_detector(job.weights, job.device)
        names = self.predictor.names
        self.classes = class_positions(split_classes(job.classes, names), names)

    def find(self, images: Any, skipped: list[UserError]) -> Iterator[ImageResult]:
        """Each image and its objects; errors of images that cannot be read go into `skipped`."""
        job = self.job
        how = job.batch_size, job.threshold, skipped, self.classes, job.tile, job.overlap
        return self.predictor.find(images, *how)

    def named(self, stream: Iterable[ImageResult]) -> Iterator[tuple[str, ImageResult]]:
        """Each image with its short name."""
        for result in stream:
            assert result.path is not None
            yield self._name_of[result.path], result

    def records(self, named: Iterator[tuple[str, ImageResult]], summary: Summary) -> Iterator[Records]:
        """Draw and count; the record of each image and the annotations of its objects."""
        named = chain(list(islice(named, 1)), named)  # where the first image fails, no folder is made
        named = _draw(named, self.job.out / "overlays") if self.job.overlays else named
        named = self._labelled(named, self.job.out / "labels") if self.job.save else named
        counted = _counted(named, summary)
        return coco_records((name_as_text(name), result.size, result.detections) for name, result in counted)

    def _labelled(self, named: Iterable[tuple[str, ImageResult]], folder: Path) -> Iterator[tuple[str, ImageResult]]:
        """The same results; the objects of each image are written as YOLO's label file."""
        for name, result in named:
            path = PurePosixPath(name)
            alone = self._stems[path.with_suffix("")] < 2  # else a.jpg.txt beside a.png.txt
            file = folder / (path.with_suffix(".txt") if alone else f"{name}.txt")
            text = result.detections.to_yolo(scores=False)
            write_whole(file, lambda temporary, text=text: temporary.write_text(text))
            yield name, result

    def done(self, part: Part) -> Manifest | None:
        """The manifest of a part that is done; `UserError` if `out` has parts of another call."""
        return done(self.job.out, part, self.call)

    def do(self, part: Part) -> Manifest:
        """Detect in a part of the images and write its results; `UserError` if they cannot be written."""
        out = self.job.out
        summary = Summary(out)
        images = self.images[part.positions(len(self.images), self.job.batch_size)]
        checksum = write_part(out, part, self.records(self.named(self.find(images, summary.skipped)), summary))
        skipped = [str(error) for error in summary.skipped]
        counts = summary.images, dict(summary.objects), skipped
        manifest = Manifest(part.number, part.count, self.call, self.predictor.names, *counts, checksum)
        write_manifest(out, manifest)
        return manifest

    @cached_property
    def call(self) -> dict[str, Any]:
        """What the results depend on: it is the same for all parts."""
        job = self.job
        return {
            "weights": _checksum(Path(job.weights).expanduser()),
            "images": len(self.images),
            "their names": fingerprint(self._name_of.values()),
            "threshold": job.threshold,
            "classes": None if self.classes is None else [self.predictor.names[i] for i in self.classes],
            "batch size": job.batch_size,
            **({} if job.tile is None else {"tile": job.tile, "overlap": job.overlap}),
        }


def _checksum(weights: Path) -> str:
    path = exported_at(weights) if is_exported(weights) else find_weights(weights)
    assert path is not None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _draw(named: Iterable[tuple[str, ImageResult]], folder: Path) -> Iterator[tuple[str, ImageResult]]:
    """The same results; each image with its boxes is written under its own name and subfolder."""
    for name, result in named:
        suffix = Path(name).suffix.lower()
        file = folder / (name if suffix in _FORMATS else f"{name}.jpg")
        assert result.path is not None
        image = result.image if result.image.size == result.size else open_image(result.path)
        overlay = draw(image, result.detections)
        write_whole(file, _saver(overlay, _FORMATS.get(suffix, "jpeg")))
        yield name, result


def _saver(image: Image.Image, kind: str) -> Callable[[Path], None]:
    return lambda temporary: image.save(temporary, format=kind, quality=90)


def _counted(named: Iterable[tuple[str, ImageResult]], summary: Summary) -> Iterator[tuple[str, ImageResult]]:
    """The same results, counted in the summary."""
    for name, result in named:
        summary.images += 1
        summary.objects.update(result.detections.names[label] for label in result.detections.labels_N)
        yield name, result

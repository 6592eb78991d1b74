"""The verb `predict`: detects objects in any number of images, and writes the results image by image."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from boxwright.classes import class_positions, split_classes
from boxwright.config import UserError, require
from boxwright.console import make_console
from boxwright.files import csv_text, name_as_text, write_whole
from boxwright.images import open_image
from boxwright.inference.open_detector import open_detector
from boxwright.runtime.coco import Records, coco_records, write_coco
from boxwright.runtime.predictor_base import BasePredictor, ImageResult, check_batch_size, check_threshold
from boxwright.runtime.sources import collect, short_names
from boxwright.runtime.video import is_video
from boxwright.visualization.boxes import draw

CSV_HEAD = ("file", "label", "score", "x1", "y1", "x2", "y2")
_FORMATS = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png", ".webp": "webp"}


@dataclass
class Summary:
    """What a call of `predict` did.

    Attributes:
        folder: where the results are.
        images: how many images were read.
        objects: how many objects were found, by class name.
        skipped: one error for each image that could not be read, or for a video that ends before its time.
    """

    folder: Path
    images: int = 0
    objects: Counter[str] = field(default_factory=Counter)
    skipped: list[UserError] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """1 if an image, or the end of a video, could not be read."""
        return int(bool(self.skipped))


def predict(
    weights: Path | str,
    source: Path | str,
    out: Path | str = Path("predictions"),
    threshold: float | None = None,
    overlays: bool = True,
    classes: list[str] | str | None = None,
    batch_size: int = 8,
    device: str = "auto",
) -> Summary:
    """Detect objects in images; write pictures with boxes, COCO JSON and CSV.

    Memory does not grow with the number of images. An image that cannot be read does not stop the others: it is listed
    at the end, and the exit code is 1. No file is ever half written: predictions.json and predictions.csv appear when
    everything is done.

    Args:
        weights: a checkpoint, the folder of a training run, or an exported .onnx file, which needs no torch.
        source: an image, a folder (with its subfolders), a quoted glob, a .txt file with one path per line, or a video.
        out: folder for overlays/, predictions.json and predictions.csv.
        threshold: keep objects with a score over this; 0 keeps every prediction. By default that of their class, which
            `train` or `evaluate` chose and stored with the weights; 0.5 where none is stored.
        overlays: write each image with its boxes; false is faster.
        classes: names of the classes to detect, as 'cat,dog' or '[cat, dog]'; by default all.
        batch_size: images per batch.
        device: auto, cpu, cuda, or for a checkpoint mps.

    Returns:
        The counts; its exit_code is 1 if an image, or the end of a video, could not be read.
    """
    console, out = make_console(), Path(out)
    if threshold is not None:
        check_threshold(threshold)
    check_batch_size(batch_size)
    paths = None if is_video(source) else _outside(collect(source), out, source)
    predictor = open_detector(weights, device)
    wanted = class_positions(split_classes(classes, predictor.names), predictor.names)
    summary = Summary(out)
    console.print(_threshold_note(predictor, threshold))

    def find(images: Any) -> Iterator[ImageResult]:
        return predictor.find(images, batch_size, threshold, summary.skipped, wanted)

    named = _frames(find(source), console) if paths is None else _files(find(_with_progress(paths, console)), paths)
    named = chain(list(islice(named, 1)), named)  # where the first image fails, no folder is made
    drawn = _draw(named, out / "overlays") if overlays else named
    _write(_counted(drawn, summary), out, predictor.names)
    _print(console, summary, overlays, paths is None)
    return summary


def _outside(paths: list[Path], out: Path, source: Path | str) -> list[Path]:
    """The paths outside of `out`, where an earlier call may have written overlays."""
    folder = out.resolve()
    kept = [path for path in paths if folder not in path.resolve().parents]
    require(kept, f"all images of {source} lie in {out}, where the results go; give another --out.")
    return kept


def _files(stream: Iterable[ImageResult], paths: list[Path]) -> Iterator[tuple[str, ImageResult]]:
    """Each image with its short name."""
    names = dict(zip(paths, short_names(paths), strict=True))
    for result in stream:
        assert result.path is not None
        yield names[result.path], result


def _frames(stream: Iterable[ImageResult], console: Console) -> Iterator[tuple[str, ImageResult]]:
    """Each frame of a video, with the video's name and its number from 0; a count is shown as progress."""
    columns = (TextColumn("detecting"), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        for result in progress.track(stream, total=None):
            assert result.path is not None
            yield f"{result.path.stem}/{result.number:06}.jpg", result


def _with_progress(paths: list[Path], console: Console) -> Iterator[Path]:
    """The same paths; a progress bar shows how many have been taken."""
    columns = (TextColumn("detecting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield from progress.track(paths)


def _threshold_note(predictor: BasePredictor, threshold: float | None) -> str:
    """Which scores count, and why."""
    if threshold is not None:
        return f"score over {threshold:g} (as asked)"
    return predictor.thresholds.describe(predictor.names)


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


def _write(named: Iterable[tuple[str, ImageResult]], out: Path, names: tuple[str, ...]) -> None:
    """Write predictions.json and predictions.csv image by image; they get their names when everything is done."""
    records = coco_records((name_as_text(name), result.size, result.detections) for name, result in named)

    def fill(json_path: Path, csv_path: Path) -> None:
        with (
            json_path.open("w", encoding="utf-8") as json_file,
            csv_path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as csv_file,
        ):
            write_coco(_tabulated(records, names, csv_file), names, json_file)

    write_whole(
        out / "predictions.json", lambda first: write_whole(out / "predictions.csv", lambda second: fill(first, second))
    )


def _tabulated(records: Iterable[Records], names: tuple[str, ...], file: TextIO) -> Iterator[Records]:
    """The same records; each object becomes a row of the table."""
    table = csv.writer(file)
    table.writerow(CSV_HEAD)
    for image, rows in records:
        for row in rows:
            x, y, width, height = row["bbox"]
            corners = (x, y, round(x + width, 3), round(y + height, 3))
            label = names[row["category_id"] - 1]
            table.writerow([csv_text(image["file_name"]), csv_text(label), row["score"], *corners])
        yield image, rows


def _print(console: Console, summary: Summary, overlays: bool, video: bool) -> None:
    counts = ", ".join(f"{name} {count}" for name, count in summary.objects.most_common())
    objects, images = _count_of(summary.objects.total(), "object"), _count_of(summary.images, "image")
    console.print(f"{objects} in {images}{': ' + counts if counts else ''}")
    drawn = f"{summary.folder / 'overlays'}, " if overlays and summary.images else ""
    console.print(f"written: {drawn}{summary.folder / 'predictions.json'} and predictions.csv")
    if summary.skipped:
        total = _count_of(summary.images + len(summary.skipped), "image")
        unread = f"{len(summary.skipped)} of {total} could not be read"
        console.print(f"{'the video could not be read to its end' if video else unread}:")
        for error in summary.skipped:
            console.print(f"  {error}")


def _count_of(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"

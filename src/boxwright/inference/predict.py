"""The verb `predict`: detects objects in any number of images, and writes the results image by image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from boxwright.config import require
from boxwright.console import make_console
from boxwright.inference.job import Job, Worker
from boxwright.inference.merge_results import merge_parts
from boxwright.inference.parts import FOLDER, Part
from boxwright.inference.results import require_parquet, write_results
from boxwright.inference.source_images import ImageFile
from boxwright.inference.summary import Summary, files, report
from boxwright.runtime.predictor_base import BasePredictor, ImageResult
from boxwright.runtime.video import is_video


def predict(
    weights: Path | str,
    source: Path | str,
    out: Path | str = Path("predictions"),
    threshold: float | None = None,
    overlays: bool = True,
    classes: list[str] | str | None = None,
    batch_size: int = 8,
    tile: int | None = None,
    overlap: float = 0.2,
    device: str = "auto",
    save: Literal["txt"] | None = None,
    parquet: bool = False,
    part: str | None = None,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
) -> Summary:
    """Detect objects in images; write pictures with boxes, COCO JSON and CSV.

    Memory does not grow with the number of images. An image that cannot be read does not stop the others: it is listed
    at the end, and the exit code is 1. No file is ever half written: predictions.json and predictions.csv appear when
    everything is done.

    Args:
        weights: a checkpoint, the folder of a training run, or an exported .onnx file, which needs no torch.
        source: an image, a folder (with its subfolders), a quoted glob, a .txt file with one path per line, a video,
            shards of `boxwright shard`, or the URL of shards, an image or a folder, as s3://bucket/photos.
        out: folder for overlays/, predictions.json and predictions.csv.
        threshold: keep objects with a score over this; 0 keeps every prediction. By default that of their class, which
            `train` or `evaluate` chose and stored with the weights; 0.5 where none is stored.
        overlays: write each image with its boxes; false is faster.
        classes: names of the classes to detect, as 'cat,dog' or '[cat, dog]'; by default all.
        batch_size: images per batch.
        tile: look for small objects in square tiles of this side, in pixels of the image, too.
        overlap: share of a side by which tiles overlap.
        device: auto, cpu, cuda, or for a checkpoint mps.
        save: txt also writes labels/, a text file for each image with rows of YOLO (`class cx cy width height`).
        parquet: write predictions.parquet, too, one row per image (needs the extra `parquet`).
        part: detect in a part of the images only, as 3/64: the third of 64, for jobs on many machines that share `out`.
            A part that is done is not done again; `boxwright merge-results OUT` joins all of them.
        engine: where to compute: local, in this process; ray, in parts on a Ray cluster (needs the extra `ray`),
            which take turns on its CPUs or GPUs and are then joined.
        address: of a running Ray cluster, as auto or ray://host:10001; by default that of
            `RAY_ADDRESS`, as a job submitted to Ray has it; without it, one is started on this machine.

    Returns:
        The counts; its exit_code is 1 if an image, or the end of a video, could not be read.
    """
    console = make_console()
    job = Job(weights, source, Path(out), threshold, overlays, classes, batch_size, device, save, tile, overlap)
    chosen = None if part is None else Part.parse(part)
    video, divided = is_video(source), part is not None or engine != "local"
    require(not (video and divided), f"{source} is a video, which has no parts; leave out --part and --engine.")
    require(part is None or engine == "local", "--engine ray divides the images by itself; leave out --part.")
    require(address is None or engine == "ray", "--address is that of a Ray cluster; give --engine ray, too.")
    require(part is None or not parquet, "a part has its own format; give --parquet to `boxwright merge-results`.")
    if parquet:
        require_parquet()
    worker = Worker(job, {} if video else job.images())
    console.print(_threshold_note(worker.predictor, threshold))
    if chosen:
        return _part(worker, chosen, console)
    if engine == "ray":
        return _ray(worker, address, parquet, console)
    summary = Summary(job.out)
    images = source if video else _with_progress(worker.images, console)
    stream = worker.find(images, summary.skipped)
    named = _frames(stream, console) if video else worker.named(stream)
    write_results(worker.records(named, summary), worker.predictor.names, job.out, parquet)
    report(console, summary, files(summary, parquet, overlays, save is not None), video)
    return summary


def _part(worker: Worker, part: Part, console: Console) -> Summary:
    """Do a part."""
    out = worker.job.out
    before = worker.done(part)
    summary = Summary.of(out, [before or worker.do(part)])
    console.print(f"part {part}{' was done before' if before else ''}")
    written = f"{out / FOLDER / part.stem}.jsonl; `boxwright merge-results {out}` joins the parts when all are there"
    report(console, summary, written)
    return summary


def _ray(worker: Worker, address: str | None, parquet: bool, console: Console) -> Summary:
    """Do all parts on a Ray cluster, and join them."""
    from boxwright.inference.ray_engine import do_parts

    columns = (TextColumn("detecting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=len(worker.images))
        for manifest in do_parts(worker, address):
            progress.advance(bar, manifest.images + len(manifest.skipped))
    summary = merge_parts(worker.job.out, parquet)
    report(console, summary, files(summary, parquet, worker.job.overlays, worker.job.save is not None))
    return summary


def _frames(stream: Iterable[ImageResult], console: Console) -> Iterator[tuple[str, ImageResult]]:
    """Each frame of a video, with the video's name and its number from 0; a count is shown as progress."""
    columns = (TextColumn("detecting"), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        for result in progress.track(stream, total=None):
            assert result.path is not None
            yield f"{result.path.stem}/{result.number:06}.jpg", result


def _with_progress(images: list[ImageFile], console: Console) -> Iterator[ImageFile]:
    """The same images; a progress bar shows how many have been taken."""
    columns = (TextColumn("detecting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield from progress.track(images)


def _threshold_note(predictor: BasePredictor, threshold: float | None) -> str:
    """Which scores count, and why."""
    if threshold is not None:
        return f"score over {threshold:g} (as asked)"
    return predictor.thresholds.describe(predictor.names)

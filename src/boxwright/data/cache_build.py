"""Building a cache: images are decoded and resized in parallel and written in order, then their targets."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from boxwright.config import UserError
from boxwright.data.records import Record
from boxwright.files import PackedFile
from boxwright.images import fit, in_turn, open_image, same_shape
from boxwright.threads import map_ahead

JPEG_QUALITY = 95
CHECKSUMS = "crc32c_B"  # target: of the bytes of each image; caches of an earlier version have none


def crc32c(data: bytes | np.ndarray) -> int:
    """CRC-32C of bytes that lie one after another."""
    return google_crc32c.value(data)  # type: ignore[arg-type] - takes any buffer


def cpu_count() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def require_all(faults: Sequence[str], total: int) -> None:
    """Raise one `UserError` that lists all faults, if there are any, out of `total` images."""
    if faults:
        listing = "\n  ".join(faults)
        raise UserError(
            f"{len(faults)} of {total} images cannot be used:\n  {listing}\n"
            "Run `boxwright check DATA` for every fault of the data set and how to fix it. Nothing was cached."
        )


class FittedImage(NamedTuple):
    """One image of a cache.

    Attributes:
        data: the bytes to write.
        size: (height, width) on the canvas.
        source: CRC-32C of the image file.
    """

    data: bytes
    size: tuple[int, int]
    source: int


class WrittenImages(NamedTuple):
    """What was written of each image: (height, width) on the canvas, bytes and their CRC-32C, and that of the file."""

    sizes: list[tuple[int, int]]
    lengths: list[int]
    checksums: list[int]
    sources: list[int]


def write_images(records: Sequence[Record], side: int, mode: str, path: Path, console: Console) -> WrittenImages:
    """Decode in parallel, write in order."""
    written, faults = WrittenImages([], [], [], []), []
    with path.open("wb") as file, _progress(console) as bar:
        pool = ThreadPoolExecutor(cpu_count())  # Pillow decodes without the interpreter's lock
        done = map_ahead(pool, lambda record: fit_image(record, side, mode), records, 8 * cpu_count())
        for fitted in bar.track(done, total=len(records)):
            if isinstance(fitted, UserError):
                faults.append(str(fitted))
            elif not faults:
                file.write(fitted.data)
                written.sizes.append(fitted.size)
                written.lengths.append(len(fitted.data))
                written.checksums.append(crc32c(fitted.data))
                written.sources.append(fitted.source)
    require_all(faults, len(records))
    return written


def _progress(console: Console) -> Progress:
    columns = TextColumn("Decoding images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def fit_image(record: Record, side: int, mode: str) -> FittedImage | UserError:
    """An image as it lies in a cache, or why it can't be used."""
    try:
        source = _crc32c_of_file(record.path)
        with in_turn(record.width, record.height):
            image = open_image(record.path, side)
        check_shape(record, image)
    except UserError as error:
        return error
    canvas_SS3, (height, width) = fit(image, side)
    if mode == "pixels":
        return FittedImage(canvas_SS3.tobytes(), (height, width), source)
    file = io.BytesIO()
    Image.fromarray(canvas_SS3[:height, :width]).save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return FittedImage(file.getvalue(), (height, width), source)


def _crc32c_of_file(path: Path | PackedFile) -> int:
    checksum = 0
    try:
        with path.open("rb") as stream:
            while block := stream.read(2**20):
                checksum = google_crc32c.extend(checksum, block)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    return checksum


def check_shape(record: Record, image: Image.Image) -> None:
    """Raise `UserError` if the aspect ratio is not that of the annotation; another size is fine."""
    if not same_shape(image.size, (record.width, record.height)):
        raise UserError(
            f"{record.path}: the image is {image.width} x {image.height}, its annotation says "
            f"{record.width} x {record.height} ({record.source})."
        )


def targets_of(record: Record, size: tuple[int, int], side: int) -> tuple[np.ndarray, np.ndarray]:
    """The objects to learn: boxes, xyxy in [0, 1] of the canvas, float64, and labels.

    Args:
        record: the image; ignored objects, and those without area after clipping, are left out.
        size: height and width of the image on the canvas, in pixels.
        side: of the canvas, in pixels.
    """
    limit_4 = np.array([record.width, record.height] * 2, np.float64)
    kept_N4 = np.asarray(record.boxes_N4, np.float64).reshape(-1, 4)[~record.ignore_N].clip(0, limit_4)
    has_area_N = (kept_N4[:, 2:] > kept_N4[:, :2]).all(1)  # False on NaN, too
    boxes_N4 = kept_N4[has_area_N] / limit_4 * np.array([size[1], size[0]] * 2) / side
    return boxes_N4, record.labels_N[~record.ignore_N][has_area_N]


def make_targets(records: Sequence[Record], written: WrittenImages, side: int, console: Console) -> dict[str, Tensor]:
    """The targets of a cache; boxes are xyxy in [0, 1] of the canvas, and the last row is zero, for padding."""
    boxes, labels, n_empty = [], [], 0
    for record, size in zip(records, written.sizes, strict=True):
        boxes_N4, labels_N = targets_of(record, size, side)
        boxes.append(boxes_N4)
        labels.append(labels_N)
        n_empty += int((~record.ignore_N).sum()) - len(labels_N)
    if n_empty:
        console.print(f"{n_empty} boxes without area in their image are left out; `boxwright check DATA` names them.")
    counts = [len(each) for each in labels]
    targets = {
        "sizes_B2": np.array(written.sizes, np.int64),
        "originals_B2": np.array([(record.height, record.width) for record in records], np.int64),
        "boxes": np.concatenate([*boxes, np.zeros((1, 4))]).astype(np.float32),
        "labels": np.concatenate([*labels, np.zeros(1, np.int64)]).astype(np.int64),
        "starts": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        "offsets": np.concatenate([[0], np.cumsum(written.lengths)]).astype(np.int64),
        CHECKSUMS: np.array(written.checksums, np.int64),
    }
    return {key: torch.from_numpy(value) for key, value in targets.items()}

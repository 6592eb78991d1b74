"""Building a cache: images are decoded and resized in parallel and written in order, then their targets."""

from __future__ import annotations

import io
import os
from array import array
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
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
from boxwright.data.columns import FlatRecords, in_columns
from boxwright.data.records import Record
from boxwright.files import PackedFile
from boxwright.images import fit, in_turn, open_image, same_shape
from boxwright.threads import map_ahead

JPEG_QUALITY = 95
CHECKSUMS = "crc32c_B"  # target: of the bytes of each image; caches of an earlier version have none


def crc32c(data: bytes | np.ndarray, before: int = 0) -> int:
    """CRC-32C of bytes that lie one after another, behind others with the checksum `before`."""
    return google_crc32c.extend(before, data)  # type: ignore[arg-type] - takes any buffer


def crc32c_of_file(path: Path | PackedFile, before: int = 0) -> int:
    """The same of the content of a file, of which a block at a time is in memory."""
    with path.open("rb") as stream:
        while block := stream.read(2**20):
            before = crc32c(block, before)
    return before


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


@dataclass(frozen=True)
class WrittenImages:
    """What was written of all images, one after another.

    Attributes:
        sizes: height and width on the canvas of each in turn.
        lengths: bytes.
        checksums: CRC-32C of these bytes.
        sources: CRC-32C of the image files.
    """

    sizes: array[int] = field(default_factory=lambda: array("q"))
    lengths: array[int] = field(default_factory=lambda: array("q"))
    checksums: array[int] = field(default_factory=lambda: array("q"))
    sources: array[int] = field(default_factory=lambda: array("q"))

    def add(self, image: FittedImage) -> None:
        """Add an image that was written."""
        self.sizes.extend(image.size)
        self.lengths.append(len(image.data))
        self.checksums.append(crc32c(image.data))
        self.sources.append(image.source)


def write_images(records: Sequence[Record], side: int, mode: str, path: Path, console: Console) -> WrittenImages:
    """Decode in parallel, write in order."""
    written, faults = WrittenImages(), []
    with path.open("wb") as file, _progress(console) as bar:
        pool = ThreadPoolExecutor(cpu_count())  # Pillow decodes without the interpreter's lock
        done = map_ahead(pool, lambda record: fit_image(record, side, mode), records, 8 * cpu_count())
        for fitted in bar.track(done, total=len(records)):
            if isinstance(fitted, UserError):
                faults.append(str(fitted))
            elif not faults:
                file.write(fitted.data)
                written.add(fitted)
    require_all(faults, len(records))
    return written


def _progress(console: Console) -> Progress:
    columns = TextColumn("Decoding images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def fit_image(record: Record, side: int, mode: str) -> FittedImage | UserError:
    """An image as it lies in a cache, or why it can't be used."""
    try:
        source = _checksum_of(record.path)
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


def _checksum_of(path: Path | PackedFile) -> int:
    try:
        return crc32c_of_file(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error


def check_shape(record: Record, image: Image.Image) -> None:
    """Raise `UserError` if the aspect ratio is not that of the annotation; another size is fine."""
    if not same_shape(image.size, (record.width, record.height)):
        raise UserError(
            f"{record.path}: the image is {image.width} x {image.height}, its annotation says "
            f"{record.width} x {record.height} ({record.source})."
        )


def targets_on_canvas(
    columns: FlatRecords, canvas_I2: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """The objects to learn of some images, one after another.

    Args:
        columns: the images.
        canvas_I2: (height, width) of each on the canvas.
        side: of the canvas, in pixels.

    Returns:
        Boxes, xyxy in [0, 1] of the canvas, (T, 4) float32; labels (T,) int64; the number of each image's (I,); and how
        many boxes are left out because they have no area in their image. Ignored ones are left out, too.
    """
    image_N, counted_N = columns.image_of_each, ~columns.ignore_N
    limit_N4 = np.tile(columns.sizes_I2[image_N], 2).astype(np.float64)
    boxes_N4 = np.asarray(columns.boxes_N4, np.float64).clip(0, limit_N4)
    has_area_N = (boxes_N4[:, 2:] > boxes_N4[:, :2]).all(1)  # False on NaN, too
    kept_N = counted_N & has_area_N
    scale_T4 = np.tile(canvas_I2[image_N[kept_N], ::-1], 2)
    boxes_T4 = (boxes_N4[kept_N] / limit_N4[kept_N] * scale_T4 / side).astype(np.float32)
    counts_I = np.bincount(image_N[kept_N], minlength=len(columns.counts_I))
    return boxes_T4, columns.labels_N[kept_N].astype(np.int64), counts_I, int((counted_N & ~has_area_N).sum())


def make_targets(records: Sequence[Record], written: WrittenImages, side: int, console: Console) -> dict[str, Tensor]:
    """The targets of a cache; boxes are xyxy in [0, 1] of the canvas, and the last row is zero, for padding."""
    canvas_B2 = np.array(written.sizes, np.int64).reshape(-1, 2)
    boxes, labels, counts, originals, n_empty = array("f"), array("q"), array("q"), array("q"), 0
    for columns in in_columns(records):
        first = len(counts)
        *parts, without_area = targets_on_canvas(columns, canvas_B2[first : first + len(columns.counts_I)], side)
        for column, part in zip((boxes, labels, counts), parts, strict=True):
            column.frombytes(part.tobytes())
        originals.frombytes(columns.sizes_I2[:, ::-1].tobytes())
        n_empty += without_area
    if n_empty:
        console.print(f"{n_empty} boxes without area in their image are left out; `boxwright check DATA` names them.")
    boxes.extend([0.0] * 4)
    labels.append(0)
    targets = {
        "sizes_B2": canvas_B2,
        "originals_B2": np.frombuffer(originals, np.int64).reshape(-1, 2),
        "boxes": np.frombuffer(boxes, np.float32).reshape(-1, 4),
        "labels": np.frombuffer(labels, np.int64),
        "starts": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        "offsets": np.concatenate([[0], np.cumsum(written.lengths)]).astype(np.int64),
        CHECKSUMS: np.array(written.checksums, np.int64),
    }
    return {key: torch.from_numpy(value) for key, value in targets.items()}

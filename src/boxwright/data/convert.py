"""`boxwright convert`: write a data set in another format."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from boxwright.config import UserError, require
from boxwright.console import make_console
from boxwright.data import coco, voc, yolo
from boxwright.data.check import image_faults
from boxwright.data.formats import cvat, huggingface, label_studio
from boxwright.data.parsed import to_dataset
from boxwright.data.read import parse, warn_user
from boxwright.data.records import Dataset, Record
from boxwright.files import PackedFile, as_location

Format = Literal["coco", "yolo", "voc", "cvat", "label-studio", "huggingface"]
FOLDERS: dict[str, Callable[[Path, str], Path]] = {
    "coco": coco.image_folder,
    "yolo": yolo.image_folder,
    "voc": voc.image_folder,
    "cvat": cvat.image_folder,
    "label-studio": label_studio.image_folder,
    "huggingface": huggingface.image_folder,
}
_NO_IGNORE = {"yolo": "YOLO", "label-studio": "Label Studio"}


def convert(data: Path | str, out: Path | str, to: Format = "coco") -> Path:
    """Write a data set in another format: all splits, all classes, background images, every box unchanged.

    Images are hard-linked where the file system allows it, and copied otherwise. A failure leaves no files behind.

    Args:
        data: a folder, annotation file or archive of any format that boxwright reads (docs/data-formats.md).
        out: folder to write; it must not exist, or must be empty.
        to: the format to write.

    Returns:
        The folder written.

    Raises:
        UserError: `out` is not empty, or the data has fatal faults.
    """
    data, out = as_location(data), Path(out)
    taken = out.is_file() or (out.is_dir() and any(out.iterdir()))
    require(not taken, f"{out} exists and is not empty; give the name of a new folder")
    parsed = parse(data)
    parsed.faults += [fault for fault in image_faults(parsed) if fault.fatal]
    dataset, dropped = to_dataset(parsed, empty_boxes=True)
    _warn_of_losses(dataset, to, dropped)
    write_dataset(dataset, out, to)
    images = sum(map(len, dataset.splits.values()))
    boxes = sum(len(record.boxes_N4) for records in dataset.splits.values() for record in records)
    splits = ", ".join(f"{split} {len(records):,}" for split, records in dataset.splits.items())
    make_console().print(
        f"{out} ({to}): {images:,} images ({splits}), {boxes:,} boxes, {len(dataset.names)} classes",
    )
    return out


def write_dataset(dataset: Dataset, out: Path, to: str, copy: bool = False) -> None:
    """Write a data set in a new or empty folder, whole or not at all.

    Args:
        dataset: what to write.
        out: the folder.
        to: a key of `FOLDERS`.
        copy: copy the images; otherwise they are hard-linked where the file system allows it.

    Raises:
        UserError: the folder can't be written.
    """
    temporary = out.absolute().parent / f".{out.absolute().name}.{os.getpid()}.tmp"
    try:
        _write(dataset, temporary, to, copy)
        if out.is_dir():
            out.rmdir()
        temporary.rename(out)
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror or error}); free some space or choose another"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _warn_of_losses(dataset: Dataset, to: Format, dropped: int) -> None:
    """Print what the new format can't hold."""
    records = [record for records in dataset.splits.values() for record in records]
    if dropped:
        warn_user(
            f"{dropped} objects have no finite box or no image and are left out (see `boxwright check {dataset.root}`)"
        )
    ignored = sum(int(record.ignore_N.sum()) for record in records)
    if to in _NO_IGNORE and ignored:
        title = _NO_IGNORE[to]
        warn_user(f"{title} has no `difficult` or crowd flag: {ignored} such objects are written as ordinary ones")


def _write(dataset: Dataset, out: Path, to: str, copy: bool) -> None:
    taken: dict[Path, set[str]] = {}
    for split, records in dataset.splits.items():
        folder = FOLDERS[to](out, split)
        folder.mkdir(parents=True, exist_ok=True)
        image_names = _unique_names(records, taken.setdefault(folder, set()))
        for record, name in zip(records, image_names, strict=True):
            _place(record.path, folder / name, copy)
        _write_annotations(dataset, split, records, image_names, out, to)
    if to == "yolo":
        yolo.write_yaml(out, list(dataset.splits), dataset.names)


def _write_annotations(
    dataset: Dataset, split: str, records: Sequence[Record], image_names: Sequence[str], out: Path, to: str
) -> None:
    if to == "coco":
        coco.write(out, split, records, image_names, dataset.names, dataset.category_ids)
    elif to == "voc":
        voc.write(out, split, records, image_names, dataset.names)
    elif to == "cvat":
        cvat.write(out, split, records, image_names, dataset.names)
    elif to == "label-studio":
        label_studio.write(out, split, records, image_names, dataset.names)
    elif to == "huggingface":
        huggingface.write(out, split, records, image_names, dataset.names)
    else:
        yolo.write(out, split, records, image_names)


def _unique_names(records: Sequence[Record], taken: set[str]) -> list[str]:
    """File names whose stems differ within a folder, since VOC and YOLO pair files by their stems.

    An image whose stem is taken gets a number: ``a.jpg``, ``a_2.jpg``. Bytes that are no text, which XML and JSON can't
    hold, become ``%E9`` and the like.
    """
    names = []
    for record in records:
        stem, number = _as_ascii(record.path.stem), 1
        while stem.casefold() in taken:
            number += 1
            stem = f"{_as_ascii(record.path.stem)}_{number}"
        taken.add(stem.casefold())
        names.append(stem + _as_ascii(record.path.suffix))
    return names


def _as_ascii(name: str) -> str:
    """A file's name with ``%XX`` for each byte that Python can't read as text."""
    return re.sub(r"[\udc80-\udcff]", lambda match: f"%{ord(match[0]) - 0xDC00:02X}", name)


def _place(source: Path | PackedFile, target: Path, copy: bool) -> None:
    """Hard-link a file, or copy it where it is packed, or the file system does not allow that."""
    if isinstance(source, PackedFile):
        target.write_bytes(source.read_bytes())
        return
    source = source.resolve()
    try:
        if not copy:
            os.link(source, target)
            return
    except OSError:
        pass
    shutil.copyfile(source, target)

"""`boxwright shard`: write a data set as tar files of many images, which train from any place and by any number."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.progress import track

from boxwright.config import UserError, parse_bytes, require
from boxwright.console import make_console
from boxwright.data.parsed import to_dataset
from boxwright.data.read import parse, warn_user
from boxwright.data.records import Dataset, Record
from boxwright.data.shards.columns import ColumnWriter
from boxwright.data.shards.index import COLUMNS, FORMAT, crc32_of, safe_name, write_about
from boxwright.data.shards.storage import INDEX, RemoteFolder
from boxwright.files import PackedFile, as_location, name_as_text
from boxwright.images import in_turn, open_image, open_lazily, same_shape
from boxwright.threads import map_ahead

AHEAD = 16  # images that are read and compared with their annotation, or waiting
CHECKED_AT = 32  # pixels: JPEGs are decoded reduced to no less than twice this, which shows whether they are whole
_BLOCK = tarfile.BLOCKSIZE


def shard(data: Path | str, out: Path | str, size: str = "256MB") -> Path | str:
    """Write a data set as tar files of many images, from which training reads without unpacking, also over a network.

    The images' bytes stay as they are. Objects without area in their image, which training leaves out, are left out.

    Args:
        data: a data set, in any format that boxwright reads (docs/data-formats.md).
        out: folder to write, which must not exist, or must be empty; or a URL such as s3://bucket/cells.
        size: the most bytes of a tar file, as in 256MB or 1GB.

    Returns:
        The folder or URL written.

    Raises:
        UserError: `out` is not empty or can't be written, the data has fatal faults, or an image can't be decoded.
            Nothing incomplete is left behind.
    """
    place, limit = as_location(out), parse_bytes("--size", size)
    require(limit >= 10**6, f"--size must be at least 1MB, not {size}.")
    dataset, dropped = to_dataset(parse(as_location(data)))
    if dropped:
        warn_user(f"{dropped} objects have no box inside an image and are left out (see `boxwright check {data}`)")
    shards = write_shards(dataset, place, limit)
    images = sum(map(len, dataset.splits.values()))
    splits = ", ".join(f"{split} {len(records):,}" for split, records in dataset.splits.items())
    make_console().print(f"{place}: {images:,} images ({splits}) in {shards:,} shards, {len(dataset.names)} classes")
    return place


def write_shards(dataset: Dataset, place: Path | str, limit: int) -> int:
    """Write a data set in shards of at most `limit` bytes, or of one image, whole or not at all; returns their number.

    Raises:
        UserError: see `shard`.
    """
    return _write_local(dataset, place, limit) if isinstance(place, Path) else _upload(dataset, place, limit)


def _write_local(dataset: Dataset, out: Path, limit: int) -> int:
    """Write into a temporary folder, which is renamed when it is complete; returns the number of shards."""
    taken = out.is_file() or (out.is_dir() and any(out.iterdir()))
    require(not taken, f"{out} exists and is not empty; give the name of a new folder")
    temporary = out.absolute().parent / f".{out.absolute().name}.{os.getpid()}.tmp"
    try:
        temporary.mkdir(parents=True)
        shards = _write(dataset, temporary, limit, None)
        if out.is_dir():
            out.rmdir()
        temporary.rename(out)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{out} cannot be written ({reason}); free some space or choose another") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return shards


def _upload(dataset: Dataset, out: str, limit: int) -> int:
    """Write each shard here, copy it to the URL and remove it here; shards.json, which makes a data set, comes last."""
    target = _Upload(RemoteFolder(out))
    taken = target.storage.exists(INDEX)
    require(not taken, f"{out} holds a data set in shards already; give a new place")
    with tempfile.TemporaryDirectory(prefix="boxwright-shards-") as work:
        try:
            return _write(dataset, Path(work), limit, target)
        except BaseException:
            target.undo()
            raise


class _Upload:
    """Copies files to a URL, and removes them again if what they are part of fails."""

    def __init__(self, storage: RemoteFolder) -> None:
        self.storage, self._names = storage, []

    def put(self, file: Path, name: str) -> None:
        """Move a file there."""
        self._names.append(name)
        self.storage.put(file, name)
        file.unlink()

    def undo(self) -> None:
        """Remove what was copied."""
        for name in self._names:
            with suppress(UserError):
                self.storage.remove(name)


def _write(dataset: Dataset, folder: Path, limit: int, upload: _Upload | None) -> int:
    """Write all splits and the index; returns the number of shards."""
    splits: dict[str, dict[str, Any]] = {}
    for split, records in dataset.splits.items():
        with _SplitWriter(folder, split, dataset.names, limit, upload) as writer:
            console = make_console(stderr=True)
            packed = map_ahead(ThreadPoolExecutor(), lambda record: pack(record, dataset), records, AHEAD)
            for each in track(packed, f"writing {split}", len(records), console=console, transient=True):
                writer.add(each)
        ids = dataset.split_ids.get(split)
        splits[split] = writer.about() | {"category_ids": None if ids is None else list(ids)}
    about = {"format": FORMAT, "names": list(dataset.names), "category_ids": list(dataset.category_ids)}
    write_about(folder / INDEX, about | {"splits": splits})
    if upload:
        upload.put(folder / INDEX, INDEX)
    return sum(len(split["shards"]) for split in splits.values())


class PackedImage(NamedTuple):
    """An image as it is written: its record, its name in the data set, its bytes, and the ending of its format."""

    record: Record
    name: str
    data: bytes
    ending: str


def pack(record: Record, dataset: Dataset) -> PackedImage:
    """Read an image, and decode it to see that it is whole.

    Raises:
        UserError: it can't be decoded, or has another shape than its annotation says.
    """
    hint = f"`boxwright check {dataset.root}` lists every fault, and how to fix it"
    try:
        data = record.path.read_bytes()
    except OSError as error:
        raise UserError(f"{record.path}: cannot be read ({error.strerror or error}); {hint}.") from error
    try:
        with in_turn(record.width, record.height):
            image = open_image(record.path, CHECKED_AT)
        with open_lazily(io.BytesIO(data)) as lazy:
            ending = {"JPEG": "jpg", "MPO": "jpg"}.get(lazy.format or "", (lazy.format or "bin").lower())
    except UserError as error:
        raise UserError(f"{str(error).rstrip('.')}; {hint}.") from error
    if not same_shape(image.size, (record.width, record.height)):
        sizes = f"{image.width} x {image.height}, its annotation {record.width} x {record.height} ({record.source})"
        raise UserError(f"{record.path} has the shape of {sizes}; {hint}.")
    return PackedImage(record, _name(record, dataset), data, ending)


def _name(record: Record, dataset: Dataset) -> str:
    """The name of an image below the folder of its data set, in which all names differ."""
    if isinstance(record.path, PackedFile):
        return record.path.path
    root = Path(dataset.root)
    inside = record.path.is_relative_to(root) and record.path != root
    return name_as_text((record.path.relative_to(root) if inside else Path(record.path.name)).as_posix())


class _SplitWriter:
    """Writes the shards and columns of a split; memory holds one image."""

    def __init__(self, folder: Path, split: str, names: Sequence[str], limit: int, upload: _Upload | None) -> None:
        self._folder, self._prefix, self._names, self._limit, self._upload = (
            folder,
            safe_name(split),
            names,
            limit,
            upload,
        )
        (folder / "index" / self._prefix).mkdir(parents=True)
        self._columns = {
            name: ColumnWriter(folder / self._file_of(name), dtype, row) for name, (dtype, row) in COLUMNS.items()
        }
        self._shards: list[list[object]] = []
        self._stored: dict[str, list[object]] = {}
        self._tar: tarfile.TarFile | None = None
        self._position = self._images = self._objects = self._texts = 0

    def __enter__(self) -> _SplitWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._close_shard()
            self._columns["starts"].append([self._objects])
            self._columns["text_starts"].append([self._texts])
        for name, column in self._columns.items():
            column.close()
            file = self._folder / self._file_of(name)
            self._stored[name] = [self._file_of(name), file.stat().st_size, crc32_of(file)]
            if self._upload and kind is None:
                self._upload.put(file, self._file_of(name))
        if self._tar:
            self._tar.close()

    def about(self) -> dict[str, Any]:
        """What shards.json tells of the split."""
        return {"images": self._images, "shards": self._shards, "columns": self._stored}

    def add(self, image: PackedImage) -> None:
        """Write an image and its annotation."""
        record, key = image.record, f"{self._images:09d}"
        annotation = json.dumps(self._annotation(image)).encode()
        space = sum(_BLOCK + -(-len(data) // _BLOCK) * _BLOCK for data in (image.data, annotation))
        if self._tar and self._position + space > self._limit:
            self._close_shard()
        if not self._tar:
            self._open_shard()
        first = self._add_member(f"{key}.{image.ending}", image.data)
        self._add_member(f"{key}.json", annotation)
        self._shards[-1][2] += 1  # type: ignore[operator]
        self._images += 1
        text = json.dumps([record.image_id, image.name]).encode()
        rows = {
            "places": [first, len(image.data), zlib.crc32(image.data)],
            "sizes": [record.width, record.height],
            "starts": [self._objects],
            "boxes": record.boxes_N4,
            "labels": record.labels_N,
            "ignore": record.ignore_N,
            "text_starts": [self._texts],
            "text": np.frombuffer(text, np.uint8),
        }
        for name, row in rows.items():
            self._columns[name].append(row)
        self._objects += len(record.labels_N)
        self._texts += len(text)

    def _annotation(self, image: PackedImage) -> dict[str, object]:
        record = image.record
        return {
            "file_name": image.name,
            "image_id": record.image_id,
            "width": record.width,
            "height": record.height,
            "boxes": record.boxes_N4.tolist(),  # xyxy in pixels
            "labels": [self._names[label] for label in record.labels_N.tolist()],
            "ignore": record.ignore_N.tolist(),
        }

    def _file_of(self, column: str) -> str:
        return f"index/{self._prefix}/{column}.npy"

    def _open_shard(self) -> None:
        name = f"{self._prefix}-{len(self._shards):05d}.tar"
        self._shards.append([name, 0, 0])
        self._tar = tarfile.open(self._folder / name, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - closed later
        self._position = 0

    def _close_shard(self) -> None:
        if not self._tar:
            return
        self._tar.close()
        self._tar = None
        name = str(self._shards[-1][0])
        self._shards[-1][1] = (self._folder / name).stat().st_size
        if self._upload:
            self._upload.put(self._folder / name, name)

    def _add_member(self, name: str, data: bytes) -> int:
        """Write a file into the shard; returns where its bytes begin."""
        assert self._tar
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(data), 0o644
        self._tar.addfile(member, io.BytesIO(data))
        first = self._position + _BLOCK
        self._position = first + -(-len(data) // _BLOCK) * _BLOCK
        return first

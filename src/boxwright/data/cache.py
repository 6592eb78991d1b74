"""A cache of images, decoded and resized to the canvas once, and their targets, in memory-mapped tensors.

A cache is a folder named by its key. It never changes:

    cache.json      version, mode, side, number of images, bytes, and checksums: of the image files, of all files of
                    the targets, of cache.json itself
    images.bin      mode `pixels`: (n, S, S, 3) uint8; mode `jpeg`: the fitted images as JPEG files, one after another
    targets/        a TensorDict: sizes_B2, originals_B2; boxes and labels of all images one after another, and in
                    `starts` the first row of each image: so one crowded image does not pad a million others;
                    `crc32c_B`, the checksum of each image, with which it is compared when it is first read

The key is a hash of all that decides the content: side, mode, version, and for each image its path, size in bytes, time
of change and annotation. A cache is built in a temporary folder and then renamed, so it is always complete; of two
processes that build it at the same time, the later one uses the cache of the earlier. Caches can be deleted while
nothing runs: they are built again. So are those that are damaged, and single images that are.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from tensordict import MemoryMappedTensor, TensorDict
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from boxwright.config import UserError, require
from boxwright.console import make_console
from boxwright.data.cache_build import CHECKSUMS, cpu_count, crc32c, fit_image, make_targets, require_all, write_images
from boxwright.data.loader import BatchSource
from boxwright.data.records import Record
from boxwright.data.shards.records import ShardRecords
from boxwright.data.shards.stream import ShardBatches
from boxwright.files import PackedFile, default_folder
from boxwright.types import Batch

Mode = Literal["auto", "pixels", "jpeg"]
VERSION = 1
JPEG_BYTES_PER_PIXEL = 0.55  # at quality 95 without chroma subsampling, measured on photographs at 256 px
LARGEST_SHARE = 0.5  # of the free disk and of the memory that `auto` lets pixels take
ABANDONED_AFTER = 24 * 3600.0  # seconds; then a temporary folder of another machine's process is removed


@dataclass(frozen=True)
class Cache:
    """A complete cache, open for reading; threads can share it.

    Attributes:
        folder: where it lies.
        side: of the square canvas, in pixels.
        mode: `pixels` or `jpeg`.
        images: uint8; (n, S, S, 3) pixels, or (bytes,) JPEG files.
        targets: sizes, boxes, labels; see the top of the file.
        records: the images, from which damaged ones are made again.
        sources: checksum of the image files; empty in a cache of an earlier version.
    """

    folder: Path
    side: int
    mode: str
    images: Tensor
    targets: dict[str, Tensor]
    records: Sequence[Record] = ()
    sources: str = ""

    in_parts = False  # see `BatchSource`

    def __len__(self) -> int:
        return len(self.targets["sizes_B2"])

    def order(self, seed: int, world: int) -> Tensor:
        """See `BatchSource`."""
        return torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))

    def batch(self, indices: Sequence[int] | Tensor, *, pin: bool = False) -> Batch:
        """The images at these positions, uint8, on the CPU, with targets padded to the most objects of an image.

        The images are channels-last in memory, which is fastest for decoders, resizing and convolutions.

        Args:
            indices: at least one position, counted from 0.
            pin: put the images into page-locked memory, for asynchronous copies to a CUDA device.

        Raises:
            UserError: for a damaged image that can't be made again.
        """
        index_B = torch.as_tensor(indices, dtype=torch.int64)
        self._verify(index_B.tolist())
        images_BHWC = torch.empty(len(index_B), self.side, self.side, 3, dtype=torch.uint8, pin_memory=pin)
        if self.mode == "pixels":
            torch.index_select(self.images, 0, index_B, out=images_BHWC)
        else:
            list(self._decoders.map(self._decode, index_B.tolist(), images_BHWC))
        starts_B = self.targets["starts"][index_B]
        counts_B = self.targets["starts"][index_B + 1] - starts_B
        slots_N = torch.arange(max(1, int(counts_B.max())))
        valid_BN = slots_N < counts_B[:, None]
        zeros = len(self.targets["labels"]) - 1
        rows_BN = torch.where(valid_BN, starts_B[:, None] + slots_N, zeros)
        return Batch(
            images_BCHW=images_BHWC.permute(0, 3, 1, 2),
            sizes_B2=self.targets["sizes_B2"][index_B],
            originals_B2=self.targets["originals_B2"][index_B],
            boxes_BN4=self.targets["boxes"][rows_BN],
            labels_BN=self.targets["labels"][rows_BN],
            valid_BN=valid_BN,
            index_B=index_B,
        )

    @cached_property
    def _unread(self) -> np.ndarray:
        """(n,) True for each image that was not compared with its checksum yet."""
        return np.full(len(self), CHECKSUMS in self.targets)

    def _verify(self, positions: Sequence[int]) -> None:
        """Compare images with their checksums, each when it is first read; make damaged ones again."""
        for position in positions:
            if self._unread[position]:
                if crc32c(self.images[self._part(position)].numpy()) != int(self.targets[CHECKSUMS][position]):
                    self._repair(position)
                self._unread[position] = False

    def _part(self, position: int) -> slice:
        """Where an image lies: rows of pixels, or bytes."""
        if self.mode == "pixels":
            return slice(position, position + 1)
        return slice(*self.targets["offsets"][position : position + 2].tolist())

    def _repair(self, position: int) -> None:
        file, first = self.folder / "images.bin", int(self.targets["offsets"][position])
        damaged = f"{file} is damaged: an image has another checksum than when it was written"
        fix = f"remove {self.folder}; it is built again"
        require(position < len(self.records), f"{damaged}; {fix}.")
        fitted = fit_image(self.records[position], self.side, self.mode)
        if isinstance(fitted, UserError) or crc32c(fitted.data) != int(self.targets[CHECKSUMS][position]):
            raise UserError(f"{damaged}, and {self.records[position].path} is not what it was; {fix}.")
        with _user_errors(self.folder), file.open("r+b") as stream:
            stream.seek(first)
            stream.write(fitted.data)
        make_console(stderr=True).print(f"{damaged}; it is made again from {self.records[position].path}")

    @cached_property
    def _decoders(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(cpu_count(), thread_name_prefix="boxwright-jpeg")

    def _decode(self, position: int, out_HWC: Tensor) -> None:
        first, last = self.targets["offsets"][position : position + 2].tolist()
        height, width = self.targets["sizes_B2"][position].tolist()
        image_CHW = decode_jpeg(self.images[first:last], ImageReadMode.RGB)
        assert isinstance(image_CHW, Tensor)  # a list only for a list
        out_HWC.zero_()[:height, :width] = image_CHW.permute(1, 2, 0)


def open_batches(records: Sequence[Record], side: int, *, mode: Mode = "auto", quiet: bool = False) -> BatchSource:
    """What batches of these images are made of: shards, which are read as training goes on, or a cache, see `build`."""
    if isinstance(records, ShardRecords):
        return ShardBatches(records, side, keep=mode != "jpeg", quiet=quiet)
    return build(records, side, mode=mode, quiet=quiet)


def build(
    records: Sequence[Record], side: int, *, mode: Mode = "auto", folder: Path | None = None, quiet: bool = False
) -> Cache:
    """The cache of these images for this canvas, built unless it exists.

    Args:
        records: the images, in the order of `Batch.index_B`. Ignored objects, and those without area after clipping,
            are left out of the targets.
        side: of the square canvas, in pixels.
        mode: `pixels` for speed; `jpeg` for about a sixth of the space; `auto` for pixels if they fit into half of the
            free disk and half of the memory.
        folder: where caches are kept; by default `default_folder()`.
        quiet: print nothing.

    Raises:
        UserError: images that can't be read (one error for all of them), no space, no permission. Nothing incomplete
            is left behind.
    """
    require(len(records), "there are no images to put into the cache.")
    require(side >= 1, f"the side of the canvas must be at least 1 pixel, not {side}.")
    home = folder or default_folder()
    console = make_console(quiet=quiet)
    paths = {name: home / key for name, key in _keys(records, side).items() if mode in ("auto", name)}
    for path in paths.values():
        if cache := _load(path, records, console):
            return cache
    with _user_errors(home):
        home.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(home)
    estimates = estimate(records, side)
    chosen = _choose(mode, estimates, home, console)
    with _user_errors(home, estimates[chosen]):
        return _build(records, side, chosen, paths[chosen], console)


def estimate(records: Sequence[Record], side: int) -> dict[str, int]:
    """Bytes that the images will take on disk, by mode. Exact for pixels, about right for JPEG."""
    sizes_B2 = np.array([(record.height, record.width) for record in records], np.float64)
    shares_B = sizes_B2.min(1) / sizes_B2.max(1).clip(min=1)
    jpeg = JPEG_BYTES_PER_PIXEL * side**2 * shares_B.sum()
    return {"pixels": len(records) * 3 * side**2, "jpeg": int(jpeg) + 1024 * len(records)}


def _keys(records: Sequence[Record], side: int) -> dict[str, str]:
    """The cache's name in each mode; missing files are one error, before anything is decoded."""
    digest, missing = hashlib.blake2b(digest_size=12), []
    for record in records:
        if isinstance(record.path, PackedFile):
            digest.update(f"{record.path.archive.checksum}|{record.path.number}|".encode())
            continue
        try:
            stat = os.stat(record.path)  # noqa: PTH116 - twice as fast as Path.stat, on a million files
        except OSError as error:
            missing.append(f"{record.path}: {error.strerror}.")
            continue
        digest.update(os.fsencode(os.path.abspath(record.path)))  # noqa: PTH100
        digest.update(f"|{stat.st_size}|{stat.st_mtime_ns}|".encode())
        digest.update(f"{record.width}|{record.height}|{len(record.labels_N)}|".encode())
        for array, kind in ((record.boxes_N4, np.float64), (record.labels_N, np.int64), (record.ignore_N, np.bool_)):
            digest.update(np.ascontiguousarray(array, kind).tobytes())
    require_all(missing, len(records))
    return {name: f"{digest.hexdigest()}-{side}-{name}-v{VERSION}" for name in ("pixels", "jpeg")}


# Choosing between pixels and JPEG


def _choose(mode: Mode, estimates: dict[str, int], home: Path, console: Console) -> str:
    """The mode; prints the reason, and raises `UserError` if the disk has no space for it."""
    free, memory = shutil.disk_usage(home).free, _memory()
    pixels = estimates["pixels"]
    if mode != "auto":
        chosen, reason = mode, "as asked"
    elif pixels > LARGEST_SHARE * free:
        chosen, reason = "jpeg", f"because pixels ({_bytes(pixels)}) would take over half of the free disk"
    elif pixels > LARGEST_SHARE * memory:
        chosen, reason = "jpeg", f"because pixels ({_bytes(pixels)}) would take over half of the memory"
    else:
        chosen, reason = "pixels", "which fit in half of the memory and of the free disk" if memory < np.inf else ""
    need = estimates[chosen]
    console.print(f"Cache of {chosen} {reason}: {_bytes(need)} in {home} ({_bytes(free)} free)")
    if need > free:
        raise _no_room(home, need, free)
    return chosen


def _memory() -> float:
    """Bytes of memory in the machine; infinite if the system does not tell."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return np.inf


def _bytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def _no_room(home: Path, need: int, free: int) -> UserError:
    return UserError(
        f"the cache needs {need:,} bytes and {home} has {free:,} free; make room, take `--cache jpeg` (a sixth of "
        "the room that pixels take), or set BOXWRIGHT_CACHE to a folder on a larger disk."
    )


@contextmanager
def _user_errors(home: Path, need: int = 0) -> Iterator[None]:
    """Raise errors of the file system as `UserError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_room(home, need, shutil.disk_usage(home).free) from error
        reason = error.strerror or str(error)
        raise UserError(
            f"the cache cannot be written to {home}: {reason}; set BOXWRIGHT_CACHE to one that can."
        ) from error


# Building


def _build(records: Sequence[Record], side: int, mode: str, path: Path, console: Console) -> Cache:
    """Build in a temporary folder, which is renamed when complete, and removed if anything fails."""
    work = path.parent / f".building-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    work.mkdir()
    try:
        written = write_images(records, side, mode, work / "images.bin", console)
        TensorDict(make_targets(records, written, side, console), batch_size=[]).memmap(work / "targets")
        about = {"version": VERSION, "mode": mode, "side": side, "images": len(records), "bytes": sum(written.lengths)}
        about["sources"] = f"{crc32c(np.array(written.sources, np.uint32)):08x}"
        about["targets"] = _checksum_of_files(work / "targets")
        about["checksum"] = _checksum(about)
        (work / "cache.json").write_text(json.dumps(about) + "\n")
        try:
            work.rename(path)
        except OSError:  # another process was faster, and its cache can be used; or something else is wrong
            if not _load(path, records, console):
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    cache = _load(path, records, console)
    assert cache, f"{path} vanished as soon as it was built"
    return cache


# Loading and removing


def _load(path: Path, records: Sequence[Record], console: Console) -> Cache | None:
    """The cache of these images in this folder, or None; one that is damaged, or cut short, is removed."""
    if not (path / "cache.json").exists():
        return None
    try:
        return _open(path, records)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        reason = str(error) if isinstance(error, UserError) else "a part of it is missing, or of another form"
        console.print(f"the cache {path} is damaged, and is built again: {reason}")
        shutil.rmtree(path, ignore_errors=True)
        return None


def _open(path: Path, records: Sequence[Record]) -> Cache:
    """The cache in this folder.

    Raises:
        UserError: if it is damaged; and other errors that damage leads to.
    """
    about = json.loads((path / "cache.json").read_text())
    side, count, length = (int(about[name]) for name in ("side", "images", "bytes"))
    if "checksum" in about:  # not in those of an earlier version
        require(about["checksum"] == _checksum(about), "cache.json has another checksum")
        require(about["targets"] == _checksum_of_files(path / "targets"), "its targets have another checksum")
    require((path / "images.bin").stat().st_size == length, "images.bin is cut short")
    require(count == len(records), "it holds other images")
    shape = torch.Size([count, side, side, 3] if about["mode"] == "pixels" else [length])
    images = MemoryMappedTensor.from_filename(path / "images.bin", torch.uint8, shape).as_subclass(Tensor)
    targets = TensorDict.load_memmap(path / "targets").to_dict()
    targets = {key: value.as_subclass(Tensor) for key, value in targets.items()}
    return Cache(path, side, about["mode"], images, targets, records, about.get("sources", ""))


def _checksum(about: dict[str, Any]) -> str:
    """CRC-32C of cache.json, in which it is stored."""
    rest = {name: value for name, value in about.items() if name != "checksum"}
    return f"{crc32c(json.dumps(rest, sort_keys=True).encode()):08x}"


def _checksum_of_files(folder: Path) -> str:
    """CRC-32C of the names and the content of all files in a folder."""
    content = [part for file in sorted(folder.iterdir()) for part in (file.name.encode(), file.read_bytes())]
    return f"{crc32c(b''.join(content)):08x}"


def _remove_abandoned(home: Path) -> None:
    """Remove temporary folders whose processes were killed while building."""
    for work in home.glob(".building-*"):
        host, pid = work.name.removeprefix(".building-").rsplit("-", 2)[:2]
        try:
            old = time.time() - work.stat().st_mtime > ABANDONED_AFTER
        except FileNotFoundError:
            continue
        if old or (host == socket.gethostname() and not _is_running(int(pid))):
            shutil.rmtree(work, ignore_errors=True)


def _is_running(pid: int) -> bool:
    """Whether a process of this machine still runs; True if the system has no safe way to ask."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

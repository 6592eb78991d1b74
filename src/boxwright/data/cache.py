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
nothing runs: they are built again. So are those that are damaged, and single images that are. A cache that grows is
another folder, see `boxwright.data.growing_cache`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import time
import uuid
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from tensordict import MemoryMappedTensor, TensorDict
from torch import Tensor

from boxwright.config import UserError, require
from boxwright.console import make_console
from boxwright.data import growing_cache
from boxwright.data.cache_build import crc32c, crc32c_of_file, make_targets, require_all, write_images
from boxwright.data.cache_reading import Cache, CompleteCache, no_room, user_errors
from boxwright.data.columns import in_columns
from boxwright.data.growing_cache import FileStates, GrowingCache
from boxwright.data.loader import BatchSource
from boxwright.data.records import Record
from boxwright.data.shards.records import ShardRecords
from boxwright.data.shards.stream import ShardBatches
from boxwright.files import PackedFile, default_folder

Mode = Literal["auto", "pixels", "jpeg", "grow"]
VERSION = 1
GROWING = "-growing"  # ends the name of a cache that grows
JPEG_BYTES_PER_PIXEL = 0.55  # at quality 95 without chroma subsampling, measured on photographs at 256 px
LARGEST_SHARE = 0.5  # of the free disk and of the memory that `auto` lets pixels take
ABANDONED_AFTER = 24 * 3600.0  # seconds; then a temporary folder of another machine's process is removed


def open_batches(
    records: Sequence[Record], side: int, *, mode: Mode = "auto", quiet: bool = False, purpose: str = ""
) -> BatchSource:
    """What batches of these images are made of: shards, which are read as training goes on, or a cache, see `build`."""
    if isinstance(records, ShardRecords):
        return ShardBatches(records, side, keep=mode != "jpeg", quiet=quiet)
    return build(records, side, mode=mode, quiet=quiet, purpose=purpose)


def build(
    records: Sequence[Record],
    side: int,
    *,
    mode: Mode = "auto",
    folder: Path | None = None,
    quiet: bool = False,
    purpose: str = "",
) -> Cache:
    """The cache of these images for this canvas, built unless it exists.

    Args:
        records: the images, in the order of `Batch.index_B`. Ignored objects, and those without area after clipping,
            are left out of the targets.
        side: of the square canvas, in pixels.
        mode: `pixels` for speed; `jpeg` for about a sixth of the space; `auto` for pixels if they fit into half of the
            free disk and half of the memory; `grow` for what `auto` takes, but empty at first: images are decoded when
            they are first used, and kept as long as there is room.
        folder: where caches are kept; by default `default_folder()`.
        quiet: print nothing.
        purpose: what the images are for, as ``training``, for the console.

    Raises:
        UserError: images that can't be read (one error for all of them; with `grow`, only missing ones), no space, no
            permission. Nothing incomplete is left behind.
    """
    require(len(records), "there are no images to put into the cache.")
    require(side >= 1, f"the side of the canvas must be at least 1 pixel, not {side}.")
    home = folder or default_folder()
    console = make_console(quiet=quiet)
    key, files = _key(records)
    names = {name: f"{key}-{side}-{name}-v{VERSION}" for name in ("pixels", "jpeg") if mode in ("auto", "grow", name)}
    if mode == "grow" and (growing := _find_growing(home, names, side, records, files)):
        console.print(f"Cache in {growing.folder} grows: {growing.held:,} of {len(records):,} images are there")
        return growing
    for name in names.values():
        if cache := _load(home / name, records, console):
            return cache
    with user_errors(home):
        home.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(home)
    estimates = estimate(records, side)
    chosen = _choose(mode, estimates, home, console, purpose)
    if mode == "grow":
        growing_cache.create(home / f"{names[chosen]}{GROWING}", side, chosen, len(records))
        return GrowingCache(home / f"{names[chosen]}{GROWING}", side, chosen, records, files)
    with user_errors(home, estimates[chosen]):
        return _build(records, side, chosen, home / names[chosen], console)


def _find_growing(
    home: Path, names: dict[str, str], side: int, records: Sequence[Record], files: FileStates
) -> GrowingCache | None:
    """The growing cache of these images, if there is one."""
    for mode, name in names.items():
        folder = home / f"{name}{GROWING}"
        if growing_cache.is_whole(folder, side, mode, len(records)):
            with user_errors(home):
                return GrowingCache(folder, side, mode, records, files)
    return None


def estimate(records: Sequence[Record], side: int) -> dict[str, int]:
    """Bytes that the images will take on disk, by mode. Exact for pixels, about right for JPEG."""
    parts = ((part.sizes_I2.min(1), part.sizes_I2.max(1).clip(min=1)) for part in in_columns(records))
    jpeg = JPEG_BYTES_PER_PIXEL * side**2 * sum((shorter_I / longer_I).sum() for shorter_I, longer_I in parts)
    return {"pixels": len(records) * 3 * side**2, "jpeg": int(jpeg) + 1024 * len(records)}


def _key(records: Sequence[Record]) -> tuple[str, FileStates]:
    """What caches of these images are called; missing files are one error, before anything is decoded."""
    digest, missing, sizes, times = hashlib.blake2b(digest_size=12), [], array("q"), array("q")
    for record in records:
        if isinstance(record.path, PackedFile):
            digest.update(f"{record.path.archive.checksum}|{record.path.number}|".encode())
            sizes.append(0)
            times.append(0)
            continue
        try:
            stat = os.stat(record.path)  # noqa: PTH116 - twice as fast as Path.stat, on a million files
        except OSError as error:
            missing.append(f"{record.path}: {error.strerror}.")
            continue
        sizes.append(stat.st_size)
        times.append(stat.st_mtime_ns)
        digest.update(os.fsencode(os.path.abspath(record.path)))  # noqa: PTH100
        digest.update(f"|{stat.st_size}|{stat.st_mtime_ns}|".encode())
        digest.update(f"{record.width}|{record.height}|{len(record.labels_N)}|".encode())
        for array_N, kind in ((record.boxes_N4, np.float64), (record.labels_N, np.int64), (record.ignore_N, np.bool_)):
            digest.update(np.ascontiguousarray(array_N, kind).tobytes())
    require_all(missing, len(records))
    return digest.hexdigest(), FileStates(np.array(sizes), np.array(times))


# Choosing between pixels and JPEG


def _choose(mode: str, estimates: dict[str, int], home: Path, console: Console, purpose: str) -> str:
    """The mode; prints the reason, and raises `UserError` if the disk has no space for it."""
    free, memory = shutil.disk_usage(home).free, _memory()
    pixels = estimates["pixels"]
    if mode in ("pixels", "jpeg"):
        chosen, reason = mode, "as asked"
    elif pixels > LARGEST_SHARE * free:
        chosen, reason = "jpeg", f"because pixels ({_bytes(pixels)}) would take over half of the free disk"
    elif pixels > LARGEST_SHARE * memory:
        chosen, reason = "jpeg", f"because pixels ({_bytes(pixels)}) would take over half of the memory"
    else:
        chosen, reason = "pixels", "which fit in half of the memory and of the free disk" if memory < np.inf else ""
    need = estimates[chosen]
    when = ", as images are used" if mode == "grow" else ""
    images = f" for {purpose}" if purpose else ""
    console.print(f"Cache of {chosen} {reason}: {_bytes(need)}{images} in {home} ({_bytes(free)} free){when}")
    if need > free and mode != "grow":
        raise no_room(home, need, free)
    return chosen


def _memory() -> float:
    """Bytes of memory in the machine; infinite if the system does not tell."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return np.inf


def _bytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


# Building


def _build(records: Sequence[Record], side: int, mode: str, path: Path, console: Console) -> CompleteCache:
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


def _load(path: Path, records: Sequence[Record], console: Console) -> CompleteCache | None:
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


def _open(path: Path, records: Sequence[Record]) -> CompleteCache:
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
    return CompleteCache(path, side, about["mode"], images, targets, records, about.get("sources", ""))


def _checksum(about: dict[str, Any]) -> str:
    """CRC-32C of cache.json, in which it is stored."""
    rest = {name: value for name, value in about.items() if name != "checksum"}
    return f"{crc32c(json.dumps(rest, sort_keys=True).encode()):08x}"


def _checksum_of_files(folder: Path) -> str:
    """CRC-32C of the names and the content of all files in a folder."""
    checksum = 0
    for file in sorted(folder.iterdir()):
        checksum = crc32c_of_file(file, crc32c(file.name.encode(), checksum))
    return f"{checksum:08x}"


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

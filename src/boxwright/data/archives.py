"""Unpack a zip or tar archive of a data set into the folder of caches, once.

No file is written outside that folder, links and devices are left out, and so is what is neither an image nor an
annotation file. An archive that unpacks to far more than its size is refused.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from boxwright.config import UserError, require
from boxwright.console import make_console
from boxwright.data.folders import can_be_a_file, suffix_of
from boxwright.files import default_folder
from boxwright.images import IMAGE_SUFFIXES

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
MAX_RATIO = 200  # unpacked bytes for each byte of the archive ...
MAX_SMALL = 2**30  # ... beyond the first GB
MAX_FILES = 10_000_000
_WANTED = IMAGE_SUFFIXES | {
    ".json", ".jsonl", ".gz", ".csv", ".tsv", ".xml", ".txt", ".odgt", ".yaml", ".yml", ".names", ".data", ".md",
}  # fmt: skip
_BLOCK = 2**20


def is_archive(file: Path) -> bool:
    """Whether a file's name has an ending of a zip or tar archive."""
    return file.name.lower().endswith(ARCHIVES)


def unpack(file: Path, caches: Path | None = None) -> Path:
    """The folder with the images and annotations of an archive; it is kept for the next time.

    Args:
        file: a zip archive, or a tar archive that may be compressed.
        caches: where the folder is made; by default in `boxwright.files.default_folder()`.

    Raises:
        UserError: the archive is damaged, encrypted, too large once unpacked, or names files outside its folder.
    """
    status = file.stat()
    key = f"{file.resolve()} {status.st_size} {status.st_mtime_ns}"
    name = f"{file.name.partition('.')[0][:40]}-{hashlib.blake2b(os.fsencode(key), digest_size=8).hexdigest()}"
    folder = (caches or default_folder()) / "unpacked" / name
    if folder.is_dir():
        return folder
    temporary = folder.with_name(f"{name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        count = _unpack(file, temporary)
        temporary.rename(folder)
    except OSError as error:
        reason = error.strerror or f"it is damaged: {error}"
        raise UserError(f"{file} can't be unpacked in {folder.parent} ({reason}); unpack it by hand") from error
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        reason = str(error).partition(":\n")[0]
        raise UserError(f"{file} is no archive that can be read ({reason}); make it again") from error
    except (NotImplementedError, RuntimeError) as error:  # of zip: an unknown compression, a password
        raise UserError(f"{file} can't be unpacked ({error}); unpack it by hand") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    make_console(stderr=True).print(f"{file}: {count:,} files are unpacked in {folder}")
    return folder


def _unpack(file: Path, folder: Path) -> int:
    """Write the files of an archive; returns their number."""
    left = MAX_SMALL + MAX_RATIO * file.stat().st_size
    left = min(left, int(0.9 * shutil.disk_usage(folder).free))
    count = 0
    for name, stream in _zip_files(file) if file.name.lower().endswith(".zip") else _tar_files(file):
        target = folder / _safe(file, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        with stream, target.open("wb") as out:
            while block := stream.read(_BLOCK):
                left -= len(block)
                require(left >= 0, f"{file} unpacks to far more than its size; unpack it by hand if you trust it")
                out.write(block)
        count += 1
        require(count <= MAX_FILES, f"{file} holds more than {MAX_FILES:,} files; unpack it by hand if you trust it")
    return count


def _zip_files(file: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            if not member.is_dir() and kind in (0, stat.S_IFREG) and _is_wanted(member.filename):
                yield member.filename, archive.open(member)


def _tar_files(file: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with tarfile.open(file) as archive:
        for member in archive:
            stream = archive.extractfile(member) if member.isreg() and _is_wanted(member.name) else None
            if stream is not None:
                yield member.name, stream


def _is_wanted(name: str) -> bool:
    """Whether it is an image or an annotation file, and not hidden."""
    parts = name.replace("\\", "/").split("/")
    hidden = any(part.startswith(".") and part not in (".", "..") for part in parts) or "__MACOSX" in parts
    return not hidden and suffix_of(parts[-1]) in _WANTED


def _safe(file: Path, name: str) -> Path:
    """A member's path inside the folder."""
    text = name.replace("\\", "/")
    parts = [part for part in text.split("/") if part not in ("", ".")]
    outside = text.startswith("/") or ".." in parts or re.match(r"[A-Za-z]:", text)
    require(not outside, f"{file} names a file outside its folder ({name!r:.100}); don't use it")
    require(can_be_a_file(text), f"{file} holds a file whose name can't be written ({name!r:.60}); unpack it by hand")
    return Path(*parts)

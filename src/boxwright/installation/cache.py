"""The command `cache`: what decoded images, unpacked archives and copied shards take on disk."""

from __future__ import annotations

import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from rich.filesize import decimal
from rich.table import Table

from boxwright.config import UserError
from boxwright.console import make_console
from boxwright.files import default_folder

_KINDS = {  # what is ours in the folder of caches: anything else there is left alone
    r"[0-9a-f]{24}-\d+-(pixels|jpeg)-v\d+(-\w+)?": "images at {} px",
    r"\.(building|removed)-.*": "unfinished",
    r"unpacked": "unpacked archives",
    r"shards": "copies of shards, and their listings",
}


@dataclass(frozen=True)
class Stored:
    """A part of the cache.

    Attributes:
        path: its folder.
        what: in words.
        size: bytes on disk.
        used: when it was last written, in seconds since 1970.
    """

    path: Path
    what: str
    size: int
    used: float


def cache(clear: bool = False) -> list[Stored]:
    """List what is stored of decoded images, unpacked archives and shards; --clear removes it.

    All of it is made again when it is needed. The folder is ``~/.cache/boxwright``, or that of the environment variable
    BOXWRIGHT_CACHE; what else lies in it is left alone. Do not clear it while a training runs.

    Args:
        clear: remove everything listed.

    Returns:
        What is there; with `clear`, what was there.
    """
    console, home = make_console(), default_folder()
    found = stored(home)
    table = Table("what", box=None, header_style="bold", pad_edge=False)
    table.add_column("size", justify="right")
    table.add_column("last written")
    for part in found:
        table.add_row(part.what, decimal(part.size), time.strftime("%Y-%m-%d %H:%M", time.localtime(part.used)))
    if found:
        console.print(table)
    total = decimal(sum(part.size for part in found))
    if not clear:
        fix = "; `boxwright cache --clear` removes it" if found else ""
        console.print(f"{total} in {home}, {free_space(home)} free{fix}")
        return found
    for part in found:
        _remove(part.path)
    console.print(f"removed {total} from {home}")
    return found


def stored(home: Path) -> list[Stored]:
    """The parts of the cache in a folder, largest first."""
    parts = [_part(path, what) for path in (home.iterdir() if home.is_dir() else ()) if (what := _kind(path.name))]
    return sorted(parts, key=lambda part: -part.size)


def free_space(folder: Path) -> str:
    """Free bytes of the disk on which a folder is, or will be."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return decimal(shutil.disk_usage(there).free)


def _kind(name: str) -> str:
    """What a folder of the cache holds; empty for what is not ours."""
    what = next((text for pattern, text in _KINDS.items() if re.fullmatch(pattern, name)), "")
    return what.format(name.split("-")[1]) if "{}" in what else what


def _part(path: Path, what: str) -> Stored:
    states = [file.lstat() for file in [path, *path.rglob("*")]]
    size = sum(getattr(state, "st_blocks", state.st_size // 512) * 512 for state in states)  # files may have holes
    return Stored(path, what, size, max(state.st_mtime for state in states))


def _remove(path: Path) -> None:
    """Remove a folder; it disappears at once, so that nobody reads a half of it."""
    gone = path.with_name(f".removed-{path.name}")
    try:
        path.rename(gone)
        shutil.rmtree(gone)
    except OSError as error:
        raise UserError(f"{path} cannot be removed ({error.strerror}); remove it by hand.") from error

"""Read bytes of shards. Those at a URL are copied, whole, to a folder of limited size, while training reads on.

An image whose shard is not here yet is read from where it lies, by itself, so that nothing waits for a whole shard.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from boxwright.config import UserError, parse_bytes
from boxwright.console import make_console
from boxwright.data.shards.index import Shard, cache_folder
from boxwright.data.shards.storage import LocalFolder, RemoteFolder, read_range
from boxwright.files import default_folder, write_whole

LIMIT = "BOXWRIGHT_CACHE_SIZE"  # bytes that shards and decoded images may take in the folder of caches
SHARE = 0.5  # of the free disk, where the limit is not given
IN_USE = 120.0  # seconds for which a copy that was read is kept, whatever else wants its room


class ShardFiles:
    """The shards of a split; threads can share it.

    Args:
        storage: where they lie.
        shards: all of them.
    """

    def __init__(self, storage: LocalFolder | RemoteFolder, shards: Sequence[Shard]) -> None:
        self._storage = storage
        self._bytes = {shard.file: shard.bytes for shard in shards}
        self._copies = None if isinstance(storage, LocalFolder) else _Copies(cache_folder(storage.place) / "copies")
        self._lock, self._wanted = threading.Lock(), set[str]()
        self._fetcher: ThreadPoolExecutor | None = None

    def read(self, shard: str, first: int, length: int) -> bytes:
        """Bytes of a shard; fewer than `length` where it is cut off.

        Raises:
            UserError: it is missing, or can't be read.
        """
        if self._copies is None:
            return self._storage.read(shard, first, length)
        if copy := self._copies.find(shard, self._bytes[shard]):
            with suppress(FileNotFoundError):  # another process made room
                return read_range(copy, first, length)
        self._fetch_later(shard)
        return self._storage.read(shard, first, length)

    def forget(self, shard: str) -> None:
        """Remove the local copy of a shard, if there is one."""
        if self._copies is not None:
            self._copies.remove(shard)

    def _fetch_later(self, shard: str) -> None:
        """Copy a shard in the background; one at a time, so that single images still get through."""
        with self._lock:
            if shard in self._wanted:
                return
            self._wanted.add(shard)
            if self._fetcher is None:
                self._fetcher = ThreadPoolExecutor(1, thread_name_prefix="boxwright-shards")
            self._fetcher.submit(self._fetch, shard)

    def _fetch(self, shard: str) -> None:
        try:
            if self._copies is not None and self._copies.make_room(self._bytes[shard]):
                content = self._storage.read(shard)
                if len(content) == self._bytes[shard]:
                    self._copies.add(shard, content)
        except UserError:
            pass  # the reading of single images tells what is wrong
        finally:
            with self._lock:
                self._wanted.discard(shard)


class _Copies:
    """Copies of shards in a folder, which several processes may share; the longest unused make room for new ones."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._used, self._told = folder, dict[str, float](), False

    def find(self, shard: str, size: int) -> Path | None:
        """The copy of a shard, if it is here and whole."""
        copy, now = self._folder / shard, time.time()
        if now - self._used.get(shard, 0.0) < IN_USE / 4:
            return copy
        try:
            if copy.stat().st_size != size:
                return None
            os.utime(copy)
        except OSError:
            return None
        self._used[shard] = now
        return copy

    def add(self, shard: str, content: bytes) -> None:
        """Keep a copy."""
        write_whole(self._folder / shard, lambda temporary: temporary.write_bytes(content))

    def remove(self, shard: str) -> None:
        """Remove a copy."""
        self._used.pop(shard, None)
        with suppress(OSError):
            (self._folder / shard).unlink()

    def make_room(self, size: int) -> bool:
        """Remove copies that are not in use until there is room for so many bytes; False if there is none."""
        everything = default_folder() / "shards"
        everything.mkdir(parents=True, exist_ok=True)
        copies = [(copy, copy.stat()) for copy in everything.glob("*/copies/*.tar")]
        taken = sum(status.st_size for _, status in copies)
        limit = limit_of_cache(everything, taken)
        if size > limit:
            self._tell(size, limit)
            return False
        for copy, status in sorted(copies, key=lambda pair: pair[1].st_mtime):
            if taken + size <= limit or time.time() - status.st_mtime < IN_USE:
                break
            copy.unlink(missing_ok=True)
            taken -= status.st_size
        return taken + size <= limit

    def _tell(self, size: int, limit: int) -> None:
        """Say, once, that no copy is kept of a shard."""
        if not self._told:
            self._told = True
            what = f"a shard of {size:,} bytes is not copied, as copies may take {limit:,}: its images are read singly"
            make_console(stderr=True).print(f"{what}; more is allowed by {LIMIT}", style="yellow")


def limit_of_cache(folder: Path, taken: int = 0) -> int:
    """Bytes that copies of shards may take, and as many again decoded images: half of the limit.

    The limit is `BOXWRIGHT_CACHE_SIZE`, or half of what would be free on the disk.

    Args:
        folder: on that disk.
        taken: bytes that they take now.

    Raises:
        UserError: the variable is no number of bytes.
    """
    if text := os.environ.get(LIMIT):
        return parse_bytes(LIMIT, text) // 2
    return int((shutil.disk_usage(folder).free + taken) * SHARE / 2)

"""Where shards lie: a folder, or a URL that fsspec knows, such as ``s3://bucket/cells``.

Every failure is a `UserError` that names the file and how to fix it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Protocol

from boxwright.config import UserError
from boxwright.extras import how_to_install

INDEX = "shards.json"
ATTEMPTS = 3  # to read something over a network
_COPY = "copy it again from where the shards were written, or write them again with `boxwright shard`"
_RIGHTS = "give credentials that may; for S3: AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"


class Storage(Protocol):
    """Files of one folder, by their names below it."""

    place: Path | str

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """Bytes of a file; fewer than `length` where it ends before."""
        ...

    def sizes(self) -> dict[str, int] | None:
        """Bytes of each file right in the folder; None where it can't be listed."""
        ...

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        ...


class LocalFolder:
    """A folder on a disk.

    Args:
        place: the folder.
    """

    def __init__(self, place: Path) -> None:
        self.place = place

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """See `Storage`."""
        try:
            return read_range(self.place / name, start, length)
        except OSError as error:
            raise _unreadable(f"{self.place / name}", error) from error

    def sizes(self) -> dict[str, int] | None:
        """See `Storage`."""
        with os.scandir(self.place) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}

    def exists(self, name: str) -> bool:
        """See `Storage`."""
        return (self.place / name).is_file()


class RemoteFolder:
    """A folder that fsspec reaches. Reading is tried `ATTEMPTS` times.

    Args:
        place: its URL.

    Raises:
        UserError: what reads such URLs is not installed, or the URL is wrong.
    """

    def __init__(self, place: str) -> None:
        self.place = place.rstrip("/")
        self._connected, self._root = _connect(self.place)
        self._process = os.getpid()

    @property
    def _system(self) -> Any:
        """The file system. Its connections have a thread, which a forked process has not: that one connects again."""
        if os.getpid() != self._process:
            self._connected, self._root = _connect(self.place)
            self._process = os.getpid()
        return self._connected

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """See `Storage`."""
        end = None if length is None else start + length
        for attempt in range(ATTEMPTS):
            try:
                data = self._system.cat_file(f"{self._root}/{name}", start=start or None, end=end)
            except Exception as error:  # of any of the libraries that may be behind fsspec
                final = isinstance(error, FileNotFoundError | PermissionError) or attempt == ATTEMPTS - 1
                if final:
                    raise _unreadable(f"{self.place}/{name}", error) from error
                time.sleep(2**attempt / 4)
            else:  # a server that knows no ranges sends the whole file
                return data if length is None or len(data) <= length else data[start:end]
        raise AssertionError

    def sizes(self) -> dict[str, int] | None:
        """See `Storage`."""
        try:
            self._system.invalidate_cache()
            listed = self._system.ls(self._root, detail=True)
            return {entry["name"].rpartition("/")[2]: int(entry["size"]) for entry in listed if entry["type"] == "file"}
        except Exception:  # no right to list, or a server that has no listing: what is missing shows when it is read
            return None

    def names(self) -> list[str]:
        """All files in the folder and its subfolders, sorted; the name of the place itself, "", if it is a file."""
        try:
            self._system.invalidate_cache()
            found = sorted(self._system.find(self._root))
        except Exception as error:
            raise _unreadable(self.place, error) from error
        return [name.removeprefix(self._root).lstrip("/") for name in found]

    def exists(self, name: str) -> bool:
        """See `Storage`."""
        try:
            self._system.invalidate_cache()
            self._system.cat_file(f"{self._root}/{name}", start=0, end=1)  # `isfile` is False where rights are missing
        except (FileNotFoundError, NotADirectoryError):
            return False
        except Exception as error:
            raise _unreadable(f"{self.place}/{name}", error) from error
        return True

    def put(self, file: Path, name: str) -> None:
        """Write a file whole."""
        self._change(name, lambda path: self._system.put_file(os.fspath(file), path))

    def remove(self, name: str) -> None:
        """Remove a file."""
        self._change(name, self._system.rm_file)

    def _change(self, name: str, change: Any) -> None:
        try:
            change(f"{self._root}/{name}")
        except Exception as error:
            reason = _reason(error)
            raise UserError(f"{self.place}/{name} can't be written: {reason}; {_RIGHTS}.") from error


def open_storage(place: Path | str) -> LocalFolder | RemoteFolder:
    """The folder at a path or URL."""
    return LocalFolder(place) if isinstance(place, Path) else RemoteFolder(place)


def read_range(file: Path, start: int = 0, length: int | None = None) -> bytes:
    """Bytes of a file, fewer where it ends before."""
    with file.open("rb", buffering=0) as stream:
        stream.seek(start)
        return stream.read(-1 if length is None else length) or b""


def damaged(place: object, what: str) -> UserError:
    """The error for a file that is not what the index tells."""
    return UserError(f"{place} {what}; {_COPY}.")


def _connect(place: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    try:
        from fsspec.core import url_to_fs

        return url_to_fs(place)
    except ImportError as error:
        missing = error.name or place.partition(":")[0]
        if missing in ("fsspec", "s3", "s3fs", "aiobotocore", "botocore"):
            raise UserError(how_to_install(place, "s3fs")) from error
        reason = " ".join(str(error).split())
        raise UserError(f"{place} needs a package of fsspec that is not installed: {reason}.") from error
    except Exception as error:
        raise UserError(f"{place} is no URL that fsspec knows: {_reason(error)}; correct it.") from error


def _unreadable(place: str, error: Exception) -> UserError:
    if isinstance(error, FileNotFoundError):
        return damaged(place, "is missing")
    if isinstance(error, PermissionError) or "credentials" in str(error).lower():
        return UserError(f"{place} can't be read: {_reason(error)}; {_RIGHTS}.")
    return UserError(f"{place} can't be read: {_reason(error)}; check its address, and the network.")


def _reason(error: Exception) -> str:
    """An error of any library in one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split()).rstrip(".")

"""Write a file whole or not at all; a `UserError` says why where it can't be written. Where files may lie, too."""

import io
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from boxwright.config import UserError, require

_RANDOM = 8  # characters that `tempfile` ends a name with
_URL = re.compile(r"([a-zA-Z][\w+.-]+(?:::[a-zA-Z][\w+.-]+)*):/+(.+)", re.ASCII)  # two letters, unlike a drive


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise a full disk, a missing permission or a folder in the way, met while writing `path`, as a `UserError`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{path} can't be written: {reason}. What was there before is unharmed.") from error


def require_writable(folder: Path) -> None:
    """Check that files can be written in a folder, which need not exist yet, before time is spent on what they hold.

    Raises:
        UserError: if a file is in the way, or the place can't be written.
    """
    absolute = folder.absolute()
    try:
        there = next(place for place in (absolute, *absolute.parents) if place.exists())
        require(there.is_dir(), f"{folder} can't be written: {there} is a file, not a folder; give another --out.")
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"nothing can be written in {folder}: {reason}; give another --out.") from error


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: readers see the old file or the new one.

    Where `path` is a symbolic link, the file that it points to is written.

    Raises:
        UserError: if the disk is full or not writable; nothing half-written is left behind.
    """
    temporary = None
    try:
        with writing(path):
            target = Path(os.path.realpath(path))
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
            os.close(handle)
            temporary = Path(name)
            write(temporary)
            temporary.chmod(0o644)
            temporary.replace(target)
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def as_location(place: Path | str) -> Path | str:
    """A path, or the text of a URL. A URL that was made a `Path`, which drops slashes, gets them back.

    >>> as_location(Path("s3://bucket/cells")), as_location("cells").name
    ('s3://bucket/cells', 'cells')
    """
    url = _URL.fullmatch(str(place))
    if url is None or os.path.exists(place):  # noqa: PTH110 - it may be a URL
        return Path(place)
    return f"{url[1]}:{'///' if url[1] in ('file', 'local') else '//'}{url[2]}"


def name_of(place: Path | str) -> str:
    """The last part of a path or URL."""
    return PurePosixPath(place).name if isinstance(place, str) else place.name


class Archive(Protocol):
    """What holds packed files, such as the shards of a data set."""

    @property
    def checksum(self) -> str:
        """Of all that it holds."""
        ...

    def read_member(self, number: int) -> bytes:
        """The bytes of a file."""
        ...


@dataclass(frozen=True)
class PackedFile:
    """A file inside an archive, with what of a `Path` the readers of images use. It is read when it is asked for.

    Attributes:
        archive: what reads it.
        number: its position there.
        place: where it lies, for messages.
        path: its name before it was packed.
    """

    archive: Archive
    number: int
    place: str
    path: str

    @property
    def name(self) -> str:
        """The last part of its name."""
        return PurePosixPath(self.path).name

    @property
    def stem(self) -> str:
        """Its name without the ending."""
        return PurePosixPath(self.path).stem

    @property
    def suffix(self) -> str:
        """The ending of its name, with the dot."""
        return PurePosixPath(self.path).suffix

    def is_file(self) -> bool:
        """True: whether it can be read shows when it is."""
        return True

    def read_bytes(self) -> bytes:
        """All its bytes.

        Raises:
            UserError: if it can't be read, or is damaged.
        """
        return self.archive.read_member(self.number)

    @classmethod
    def of_bytes(cls, data: bytes, name: str) -> "PackedFile":
        """A file that is only in memory; `name` stands for it in messages."""
        return cls(_Held(data), 0, name, name)

    def held(self) -> "PackedFile":
        """The same file, read now and kept in memory, so that it is read once."""
        return replace(self, archive=_Held(self.read_bytes()), number=0)

    def open(self, mode: str = "rb") -> io.BytesIO:
        """Its bytes as a stream, to read."""
        assert mode == "rb"
        return io.BytesIO(self.read_bytes())

    def __str__(self) -> str:
        return self.place


@dataclass(frozen=True)
class _Held:
    """An archive of one file, in memory."""

    data: bytes
    checksum: str = ""

    def read_member(self, number: int) -> bytes:
        """Its bytes."""
        assert number == 0
        return self.data


def is_file(path: Path | PackedFile) -> bool:
    """Whether there is such a file; False for a path that no file can have, as one with a name of 300 letters."""
    try:
        return path.is_file()
    except OSError:
        return False


def name_on_disk(text: str) -> str:
    """A file's name from a text in UTF-8 as Python spells it here; where the locale is C, that is another spelling."""
    try:
        return os.fsdecode(text.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:  # a surrogate that is no byte of a file's name: there is no such file
        return text


def name_as_text(name: str) -> str:
    """The inverse of `name_on_disk`. What is no UTF-8 stays as lone surrogates, from which the name can be restored."""
    return os.fsencode(name).decode("utf-8", "surrogateescape")


def default_folder() -> Path:
    """Where caches are kept: `BOXWRIGHT_CACHE`, else `boxwright` in `XDG_CACHE_HOME`, else `~/.cache/boxwright`."""
    if chosen := os.environ.get("BOXWRIGHT_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "boxwright"


def csv_text(text: str) -> str:
    """A text for a cell of a table, with an apostrophe in front if a spreadsheet would take it for a formula.

    >>> csv_text("=1+1"), csv_text("cat")
    ("'=1+1", 'cat')
    """
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def remove_temporary(folder: Path, patterns: Iterable[str]) -> None:
    """Remove what `write_whole` left behind in a process that was killed; nobody else may write these files now.

    Args:
        folder: where they lie.
        patterns: of the files that were to be written, as ``last.safetensors`` or ``pictures/*.jpg``.
    """
    for pattern in patterns:
        place, _, name = pattern.rpartition("/")
        for file in (folder / place).glob(f".{name}.{'?' * _RANDOM}"):
            with suppress(OSError):
                file.unlink()

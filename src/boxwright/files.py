"""Writing a file whole or not at all, and saying so when it can't be."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from boxwright.config import UserError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A full disk, a missing permission or a folder in the way, met while writing `path`, as a `UserError`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{path} can't be written: {reason}. What was there before is unharmed.") from error


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: readers see the old file or the new one.

    Raises:
        UserError: if the disk is full or not writable; nothing half-written is left behind.
    """
    temporary = None
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            os.close(handle)
            temporary = Path(name)
            write(temporary)
            temporary.chmod(0o644)
            temporary.replace(path)
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)

"""One process at a time in the folder of a run."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from boxwright.config import UserError
from boxwright.files import writing


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder, which is made if need be, against other processes, until the block or the process ends.

    Where the file system has no locks, nothing is held. A folder that was made here and stays empty is removed.

    Raises:
        UserError: if another process, or another part of this one, holds it.
    """
    made = not folder.exists()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # of a file system without locks
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                busy = f"another process writes in {folder} at this moment"
                raise UserError(f"{busy}; wait for its end, or give another --out.") from None
        yield
    finally:
        if made:
            with suppress(OSError):  # where it is not empty
                folder.rmdir()
        os.close(handle)

"""Tensors as a safetensors file."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from boxwright.checkpoints.locate import CHECKPOINT, OTHER_PROJECTS, how_to_import
from boxwright.config import UserError


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write the file; errors of the file system are raised as `OSError`, as by other functions."""
    try:
        save_file(dict(tensors), path, metadata=None if metadata is None else dict(metadata))
    except SafetensorError as error:
        raise OSError(str(error)) from error


def read_tensors(file: Path, what: str, header_only: bool = False) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file.

    Args:
        file: where it lies.
        what: the expected content, for the error message.
        header_only: read no tensors.

    Raises:
        UserError: if it can't be read, is damaged, or is no safetensors file.
    """
    try:
        with safe_open(file, framework="pt") as stored:
            keys = [] if header_only else stored.keys()
            return stored.metadata() or {}, {key: stored.get_tensor(key) for key in keys}
    except SafetensorError as error:
        with file.open("rb") as stream:
            start = stream.read(2)
        is_pickle = start in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
        damaged = f"no safetensors file, or one that is cut short or damaged ({error})"
        reason = "a pickle, which could run code and is never opened" if is_pickle else damaged
        other_project = is_pickle or any(file.match(pattern) for pattern in OTHER_PROJECTS)
        fix = f" {how_to_import(file)}" if other_project and what == CHECKPOINT else ""
        raise UserError(f"{file} is not {what}: it is {reason}.{fix}") from error
    except OSError as error:
        raise UserError(f"{file} can't be read: {error.strerror or error}.") from error

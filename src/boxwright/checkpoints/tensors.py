"""Tensors as a safetensors file."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from boxwright.checkpoints.locate import CHECKPOINT, OTHERS, how_to_import
from boxwright.config import UserError


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write the file; a file system that refuses is an `OSError`, as it is everywhere else."""
    try:
        save_file(dict(tensors), path, metadata=None if metadata is None else dict(metadata))
    except SafetensorError as error:
        raise OSError(str(error)) from error


def read_tensors(file: Path, what: str, header_only: bool = False) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header and tensors of a safetensors file; `what` names the expected content in the error."""
    try:
        with safe_open(file, framework="pt") as stored:
            keys = [] if header_only else stored.keys()
            return stored.metadata() or {}, {key: stored.get_tensor(key) for key in keys}
    except SafetensorError as error:
        with file.open("rb") as stream:
            start = stream.read(2)
        pickled = start in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
        foreign = f"no safetensors file, or one that is cut short or damaged ({error})"
        reason = "a pickle, which could run code and is never opened" if pickled else foreign
        other = what == CHECKPOINT and (pickled or any(file.match(pattern) for pattern in OTHERS))
        mend = f" {how_to_import(file)}" if other else ""
        raise UserError(f"{file} is not {what}: it is {reason}.{mend}") from error
    except OSError as error:
        raise UserError(f"{file} can't be read: {error.strerror or error}.") from error

"""Tensors as a safetensors file, with checksums of header and tensors; files without them are read, too."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from boxwright.checkpoints.header import check_seal, sealed, sort_header
from boxwright.checkpoints.locate import CHECKPOINT, OTHER_PROJECTS, how_to_import
from boxwright.config import UserError, require

CHECKSUM = "tensors_crc32c"  # metadata: CRC-32C of names, dtypes, shapes and values


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write the file, equal tensors and metadata as equal bytes.

    Args:
        tensors: contiguous ones, by name.
        path: where to.
        metadata: stored beside them.

    Raises:
        OSError: for errors of the file system, as other functions do.
    """
    try:
        save_file(dict(tensors), path, metadata=sealed({**(metadata or {}), CHECKSUM: _crc32c(tensors)}))
    except SafetensorError as error:
        raise OSError(str(error)) from error
    sort_header(path)


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
            header = stored.metadata() or {}
            check_seal(file, header)
            tensors = {key: stored.get_tensor(key) for key in ([] if header_only else stored.keys())}
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
    if not header_only and CHECKSUM in header:
        whole = header[CHECKSUM] == _crc32c(tensors)
        require(whole, f"{file} is damaged: its tensors have another checksum than its header.")
    return header, tensors


def _crc32c(tensors: Mapping[str, Tensor]) -> str:
    """Of contiguous tensors; of a thousand small ones, what Python does for each takes longer than their bytes."""
    checksum = 0
    for key in sorted(tensors):
        value = tensors[key]
        about = f"{key} {value.dtype} {tuple(value.shape)} ".encode()
        if value.dtype is torch.bfloat16:  # which numpy lacks
            value = value.view(torch.int16)
        content: Any = value.numpy(force=True)
        checksum = google_crc32c.extend(google_crc32c.extend(checksum, about), content)
    return f"{checksum:08x}"

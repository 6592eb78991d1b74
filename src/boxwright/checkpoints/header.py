"""The header of a safetensors file, read with the standard library alone."""

import json
from pathlib import Path

from boxwright.config import UserError

LARGEST = 100_000_000  # bytes of a header, as safetensors limits it


def read_header(file: Path) -> dict[str, str]:
    """The metadata of a safetensors file; empty if it has none.

    Raises:
        UserError: if the file can't be read, is cut short, or is no safetensors file.
    """
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            entries = json.loads(stream.read(min(length, LARGEST)))
        metadata = {**entries.pop("__metadata__", {})}
        end = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except OSError as error:
        raise UserError(f"{file} can't be read: {error.strerror or error}.") from error
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise UserError(f"{file} is no safetensors file, or one that is damaged.") from error
    if file.stat().st_size != end:
        raise UserError(f"{file} is cut short, or longer than its header says.")
    return metadata

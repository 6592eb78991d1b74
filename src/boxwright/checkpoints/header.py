"""The header of a safetensors file, read and rewritten with the standard library alone."""

import json
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from boxwright.config import UserError
from boxwright.files import write_whole

LARGEST = 100_000_000  # bytes of a header, as safetensors limits it
SEAL = "header_crc32"  # metadata: CRC-32 of all other metadata


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
    check_seal(file, metadata)
    return metadata


def sealed(metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata, sorted, with a checksum of all of it."""
    rest = {name: metadata[name] for name in sorted(metadata) if name != SEAL}
    return rest | {SEAL: f"{zlib.crc32(json.dumps(rest).encode()):08x}"}


def check_seal(file: Path, metadata: Mapping[str, str]) -> None:
    """Raise `UserError` where metadata is not what was sealed; a file of an earlier version has no seal."""
    if SEAL in metadata and dict(metadata) != sealed(metadata):
        raise UserError(f"{file} is damaged: its header has another checksum than when it was written.")


def sort_header(file: Path) -> None:
    """Put the metadata of a safetensors file, which comes in any order, into one order."""
    with file.open("r+b") as stream:
        length = int.from_bytes(stream.read(8), "little")
        entries = json.loads(stream.read(length))
        metadata = entries.get("__metadata__", {})
        entries["__metadata__"] = {name: metadata[name] for name in sorted(metadata)}
        text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= length, "the same entries take as many bytes"
        stream.seek(8)
        stream.write(text.ljust(length))


def store_in_card(file: Path, facts: Mapping[str, Any]) -> None:
    """Add facts to the model card of a checkpoint, in place of those of the same names; its tensors stay as they are.

    The file is written whole or not at all.

    Raises:
        UserError: if it can't be read or written.
    """
    metadata = read_header(file)
    metadata["card"] = json.dumps(json.loads(metadata["card"]) | dict(facts))
    metadata = sealed(metadata) if SEAL in metadata else metadata

    def write(temporary: Path) -> None:
        with file.open("rb") as stream, temporary.open("wb") as target:
            entries = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
            text = json.dumps(entries | {"__metadata__": metadata}).encode()
            text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
            target.write(len(text).to_bytes(8, "little") + text)
            shutil.copyfileobj(stream, target)

    write_whole(file, write)

"""TensorFlow's checkpoints ("tensor bundles"), read without TensorFlow.

`NAME.index` is a sorted string table in the format of LevelDB: blocks of (name, entry), a block with the offsets of all
blocks, and a footer of 48 bytes with the offset of that block. The entry of a tensor is a protocol buffer with its type
and shape, and the position of its bytes in `NAME.data-00000-of-00001` (and further such files). Blocks compressed with
snappy, which no release of TensorFlow writes, are refused.
"""

import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import google_crc32c
import numpy as np

from boxwright.config import UserError, require

MAGIC = 0xDB4775248B80FB57
FOOTER = 48
TYPES = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8", 14: "<u2", 19: "<f2"}  # by TensorFlow's number; 14 is bfloat16
_BFLOAT16 = 14
_SHARD = re.compile(r"(.*)\.(?:index|data-\d{5}-of-\d{5})")


def find_bundle(source: Path) -> Path | None:
    """The path of a bundle without its endings, or None if there is none.

    Args:
        source: the path itself, one of its files, or a folder with one bundle, or with a file that names the latest.

    Raises:
        UserError: for a folder with several bundles, or with data files without an index.
    """
    if source.is_dir():
        return _in_folder(source)
    match = _SHARD.fullmatch(source.name)
    prefix = source.with_name(match[1]) if match else source
    return prefix if index_of(prefix).is_file() or match else None


def index_of(prefix: Path) -> Path:
    """The index file of a bundle."""
    return prefix.with_name(prefix.name + ".index")


def _in_folder(folder: Path) -> Path | None:
    bundles = sorted(path.with_suffix("") for path in folder.glob("*.index"))
    if len(bundles) > 1 and (folder / "checkpoint").is_file():
        latest = re.search(r'^model_checkpoint_path: "(.+)"', (folder / "checkpoint").read_text(), re.MULTILINE)
        bundles = [path for path in bundles if latest and path.name == Path(latest[1]).name] or bundles
    data = next(folder.glob("*.data-*-of-*"), None) if not bundles else None
    require(data is None, f"{data} has no index beside it; a checkpoint needs its index and all its data files.")
    names = ", ".join(path.name for path in bundles)
    require(len(bundles) < 2, f"{folder} holds several checkpoints ({names}); give one of them.")
    return bundles[0] if bundles else None


def read_bundle(prefix: Path, wanted: Callable[[str], bool]) -> dict[str, np.ndarray]:
    """The wanted tensors by name.

    Raises:
        UserError: if a file is missing, damaged, compressed, or no bundle.
    """
    index = index_of(prefix)
    try:
        entries = dict(_table(index.read_bytes()))
        shards = _shards(prefix, entries.pop(b""))
        fields = {name.decode(): _message(entry) for name, entry in entries.items() if wanted(name.decode())}
        return {name: _tensor(name, entry, shards) for name, entry in fields.items()}
    except OSError as error:
        what = f"{error.filename} can't be read: {error.strerror}"
        raise UserError(f"{what}; a checkpoint needs its index and all its data files.") from error
    except NotImplementedError as error:
        fix = "write the checkpoint again with TensorFlow, which leaves it uncompressed"
        raise UserError(f"{index} is compressed with snappy, which boxwright does not read; {fix}.") from error
    except (ValueError, KeyError, IndexError, struct.error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{index} is no index of a TensorFlow checkpoint, or it is cut short or damaged.") from error


def _shards(prefix: Path, header: bytes) -> list[np.ndarray]:
    """The bytes of all data files, mapped into memory."""
    fields = _message(header)
    require(fields.get(2, 0) == 0, f"{prefix} was written by a big-endian machine, which can't be read here.")
    count = int(fields.get(1, 0))
    files = [prefix.with_name(f"{prefix.name}.data-{number:05}-of-{count:05}") for number in range(count)]
    return [np.memmap(file, np.uint8, "c") if file.stat().st_size else np.empty(0, np.uint8) for file in files]


def _tensor(name: str, entry: dict[int, int | bytes], shards: list[np.ndarray]) -> np.ndarray:
    """The tensor of an entry, with its checksum checked."""
    type_, shard = int(entry.get(1, 0)), int(entry.get(3, 0))
    start, size = int(entry.get(4, 0)), int(entry.get(5, 0))
    require(type_ in TYPES and 7 not in entry, f"{name} is of a kind (text, or in slices) that is no plain tensor.")
    shape = [int(_message(dim).get(1, 0)) for dim in _repeated(bytes(entry.get(2, b"")), 2)]
    stored = shards[shard][start : start + size]
    file = getattr(shards[shard], "filename", "its empty data file")
    require(len(stored) == size, f"{name} lies behind the end of {file}, which is cut short.")
    require(_crc(stored) == entry.get(6), f"the bytes of {name} are damaged: their checksum is wrong.")
    values = stored.view(TYPES[type_]).reshape(shape)
    return (values.astype("<u4") << 16).view("<f4") if type_ == _BFLOAT16 else values


def _table(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a sorted string table."""
    footer = content[-FOOTER:]
    if struct.unpack("<Q", footer[-8:])[0] != MAGIC:
        raise ValueError("no footer")
    _, at = _handle(footer, 0)
    handle, _ = _handle(footer, at)
    for _, entry in _block(content, handle):
        yield from _block(content, _handle(entry, 0)[0])


def _handle(content: bytes, at: int) -> tuple[tuple[int, int], int]:
    """Offset and size of a block, and the end of the handle."""
    offset, at = _varint(content, at)
    size, at = _varint(content, at)
    return (offset, size), at


def _block(content: bytes, handle: tuple[int, int]) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a block; a key is stored as the number of bytes shared with the key before, and the rest."""
    start, end = handle[0], handle[0] + handle[1]
    kind, checksum = struct.unpack_from("<BI", content, end)
    if _crc(content[start : end + 1]) != checksum or kind > 1:
        raise ValueError("damaged block")
    if kind:
        raise NotImplementedError("compressed block")
    block = content[start:end]
    restarts = struct.unpack("<I", block[-4:])[0]
    at, key, stop = 0, b"", len(block) - 4 * (restarts + 1)
    while at < stop:
        shared, at = _varint(block, at)
        fresh, at = _varint(block, at)
        length, at = _varint(block, at)
        key = key[:shared] + block[at : at + fresh]
        at += fresh + length
        yield key, block[at - length : at]


def _message(content: bytes) -> dict[int, int | bytes]:
    """The fields of a protocol buffer by number; of a repeated field, the last value."""
    return dict(_fields(content))


def _repeated(content: bytes, number: int) -> list[bytes]:
    """All values of a repeated field of messages."""
    return [bytes(value) for field, value in _fields(content) if field == number and isinstance(value, bytes)]


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(content):
        tag, at = _varint(content, at)
        kind = tag & 7
        value: int | bytes
        if kind == 0:
            value, at = _varint(content, at)
        elif kind == 2:
            length, at = _varint(content, at)
            value, at = content[at : at + length], at + length
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value, at = int.from_bytes(content[at : at + size], "little"), at + size
        else:
            raise ValueError(f"a protocol buffer has no fields of kind {kind}")
        yield tag >> 3, value


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """A variable-length integer, 7 bits per byte, and where it ends."""
    value = shift = 0
    while content[at] > 127:
        value |= (content[at] & 127) << shift
        shift, at = shift + 7, at + 1
    return value | content[at] << shift, at + 1


def _crc(content: bytes | np.ndarray) -> int:
    """The masked CRC-32C of bytes, in the form in which LevelDB stores it."""
    crc = google_crc32c.value(bytes(content))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

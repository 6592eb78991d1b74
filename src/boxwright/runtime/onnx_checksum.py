"""A checksum at the end of an exported file: the last entry of its metadata, which other programs can read."""

import zlib
from mmap import mmap

KEY, DIGITS = b"checksum", 8
# of onnx.proto: field 14 of ModelProto is an entry of metadata; its fields 1 and 2 are key and value
_ENTRY = b"\x0a" + bytes([len(KEY)]) + KEY + b"\x12" + bytes([DIGITS])
_BEGIN = b"\x72" + bytes([len(_ENTRY) + DIGITS]) + _ENTRY


def with_checksum(content: bytes) -> bytes:
    """The bytes of an ONNX file, and behind them the entry with their CRC-32."""
    return content + _BEGIN + _crc32(content)


def is_whole(content: bytes | mmap) -> bool:
    """Whether the bytes of a file are those that were written; True for a file without a checksum."""
    end = len(content) - len(_BEGIN) - DIGITS
    if end < 0 or content[end : end + len(_BEGIN)] != _BEGIN:
        return True
    return content[end + len(_BEGIN) :] == _crc32(memoryview(content)[:end])


def _crc32(content: bytes | memoryview) -> bytes:
    return f"{zlib.crc32(content):08x}".encode()

"""Files that cost a decoder far more time or memory than their size suggests."""

import io
import struct
import zlib
from typing import Any

from PIL import Image


def saved(image: Image.Image, kind: str, **how: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def repeated_scans(times: int, size: tuple[int, int] = (2000, 2000)) -> bytes:
    """A progressive JPEG whose last scan comes many times."""
    whole = saved(Image.new("L", size), "jpeg", progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * times + whole[-2:]


def png_chunks(count: int) -> bytes:
    """A PNG with very many small chunks."""
    whole = saved(Image.new("L", (8, 8)), "png")
    end = whole.index(b"IDAT") - 4
    return whole[:end] + _chunk(b"teXt", b"") * count + whole[end:]


def png_cut_short(width: int, height: int) -> bytes:
    """The header of a large PNG of 16 bits a channel, and little more."""
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 6, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + _chunk(b"IDAT", zlib.compress(bytes(1000)))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def gif_comments(size: int) -> bytes:
    """A GIF with comments of so many bytes together."""
    whole = saved(Image.new("L", (8, 8)), "gif")
    start = whole.index(b",\0\0\0\0")
    comment = b"\x21\xfe" + b"\xff".join([b"", *[bytes([65]) * 255] * 8]) + b"\0"
    return whole[:start] + comment * (size // len(comment)) + whole[start:]


def ppm_comment(size: int) -> bytes:
    """A PPM with a comment of so many bytes."""
    return b"P6\n#" + b"a" * size + b"\n2 2\n255\n" + bytes(12)


def ppm_text(side: int) -> bytes:
    """A PPM of numbers as text, which is decoded in Python."""
    return b"P3 %d %d 255\n" % (side, side) + b"7 " * (3 * side * side)


def ppm_deep(side: int) -> bytes:
    """A PPM of 16 bits a channel, which is decoded in Python."""
    return b"P6 %d %d 65535\n" % (side, side) + bytes(6 * side * side)


def bmp_runs(side: int) -> bytes:
    """A BMP of run lengths, which is decoded in Python."""
    runs = (b"\1\7" * side + b"\0\0") * side + b"\0\1"
    head = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(runs), 0, 0, 256, 0) + bytes(1024)
    return b"BM" + struct.pack("<IHHI", 14 + len(head) + len(runs), 0, 0, 14 + len(head)) + head + runs


def plain(mode: str, size: tuple[int, int], kind: str, **how: Any) -> bytes:
    """A large image of one colour."""
    return saved(Image.new(mode, size), kind, **how)

"""Google's snappy format, one block of it, decompressed (google/snappy, format_description.txt).

TensorFlow can compress the index of a checkpoint, a few kilobytes, with it; so far none of its releases does. That is
too little to ask everybody for a compiled library.
"""


def decompress(content: bytes) -> bytes:
    """What was compressed.

    Raises:
        ValueError: if this is no snappy block, or one that is cut short.
    """
    length, at = _length(content)
    out = bytearray()
    while at < len(content):
        tag = content[at]
        kind, size = tag & 3, tag >> 2
        at += 1
        if kind == 0:  # as it stands
            extra = max(size - 59, 0)
            size = int.from_bytes(content[at : at + extra], "little") if extra else size
            at += extra
            out += content[at : at + size + 1]
            at += size + 1
            continue
        if kind == 1:  # 4 to 11 bytes that were there before, up to 2047 bytes ago
            size, back, at = (size & 7) + 4, (tag >> 5) << 8 | content[at], at + 1
        else:  # 1 to 64 bytes from further back
            width = 2 if kind == 2 else 4
            size, back, at = size + 1, int.from_bytes(content[at : at + width], "little"), at + width
        if not 0 < back <= len(out):
            raise ValueError("a snappy block refers to what is not there")
        for _ in range(size):  # the copy may reach into itself
            out.append(out[-back])
    if len(out) != length:
        raise ValueError("a snappy block is cut short")
    return bytes(out)


def _length(content: bytes) -> tuple[int, int]:
    """The length that the block says, and where it begins."""
    value = shift = at = 0
    while content[at] > 127:
        value |= (content[at] & 127) << shift
        shift, at = shift + 7, at + 1
    return value | content[at] << shift, at + 1

"""Damage to files: bytes that are replaced, and bits that are flipped."""

import random

_WORDS = [
    b"", b"0", b"-1", b"1e400", b"NaN", b"null", b"[", b"]", b"{}", b'"', b"\x00", b"\xff", b",", b"\n", b"9" * 5000,
    b'"\\ud800"', b"\xed\xa0\x80", b"x" * 300, b"<", b"&a;", b"true", b"/dev/zero", b"../" * 40, b"[" * 3000,
]  # fmt: skip


def mutate(content: bytes, draw: random.Random) -> bytes:
    """Replace up to five parts by other ones, and sometimes cut the end off."""
    for _ in range(draw.choice([1, 1, 2, 5])):
        start = draw.randrange(len(content) + 1)
        end = min(len(content), start + draw.choice([0, 1, 1, 3, 10, 100]))
        content = content[:start] + draw.choice(_WORDS) + content[end:]
    return content[: draw.randrange(len(content) + 1)] if draw.random() < 0.1 else content


def flip(content: bytes, bit: int) -> bytes:
    """The same bytes but for one bit, counted from 0."""
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)

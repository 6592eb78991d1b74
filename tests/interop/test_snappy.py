import pytest
from foreign_samples import squeeze
from hypothesis import given
from hypothesis import strategies as st

from boxwright.interop.snappy import decompress


@given(st.lists(st.sampled_from([b"a", b"model/", b"\x00\xff", b"layers", b"0123456789" * 9]), max_size=60))
def test_what_was_compressed_comes_back(words):
    content = b"".join(words)
    assert decompress(squeeze(content)) == content


def test_all_kinds_of_elements():
    # five bytes as they stand; 10 from 5 back (reaching into itself); 4 from 15 back, said in 2 and in 4 bytes
    block = b"\x17" + b"\x10hello" + bytes([(10 - 4) << 2 | 1, 5]) + b"\x0e\x0f\x00" + b"\x0f\x0f\x00\x00\x00"
    assert decompress(block) == b"hello" * 3 + b"hell" + b"ohel"
    long = bytes(range(256)) * 2
    assert decompress(b"\x80\x04" + b"\xf4\xff\x01" + long) == long


@pytest.mark.parametrize("block", [b"\x05\x00a", b"\x04\x0e\x01\x00", b"\x02\x00a\x05\x00"])
def test_damaged_blocks_are_refused(block):
    with pytest.raises(ValueError, match="snappy"):
        decompress(block)

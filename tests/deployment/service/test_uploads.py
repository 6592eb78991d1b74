"""Whatever is uploaded becomes an image or is refused with a reason."""

import io
import struct
import zlib
from importlib.util import find_spec

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from boxwright.deployment.service.limits import RequestError
from boxwright.deployment.service.uploads import decode, from_base64
from boxwright.images import IMAGE_SUFFIXES, image_formats
from helpers.uploads import KINDS, LIMIT, check_decoded, damaged, picture


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.one_of(damaged(), st.binary(max_size=200)))
def test_any_bytes_are_an_image_or_are_refused(data):
    check_decoded(data)


@pytest.mark.parametrize("text", ["AAA", "AA==\n", "data:image/png;base64,AAAA", "grö", "\ud800", "\0", "A" * 5])
def test_text_that_is_no_base64(text):
    with pytest.raises(RequestError, match="it is not base64") as refused:
        from_base64(text, "it")
    assert refused.value.status == 400


def test_nothing_is_decoded_of_a_bomb():
    """A PNG of 400 megapixels whose data would be as large, were it looked at; the header is all there is."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0))
    with pytest.raises(RequestError, match="20000 x 20000 pixels") as refused:
        decode(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))), "it", 32, 2**25)
    assert refused.value.status == 413


def test_what_is_an_image_in_a_folder_is_one_in_an_upload():
    read = {kind for ending, kind in Image.registered_extensions().items() if ending in IMAGE_SUFFIXES}
    assert read - {"MPO"} == set(image_formats()) - {"MPO"}  # which Pillow reads as JPEG
    assert decode(picture(kind="mpo"), "it", 32, LIMIT).size == (96, 64)


def test_heic_needs_a_plugin_or_is_read():
    file = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    with pytest.raises(RequestError, match="it cannot be read as an image") as refused:
        decode(file, "it", 32, LIMIT)
    assert "pillow-heif" in str(refused.value) or find_spec("pillow_heif")


@pytest.mark.parametrize("kind", KINDS)
def test_one_pixel_of_every_format(kind):
    assert decode(picture((1, 1), (0, 0, 0, 0), kind), "it", 32, LIMIT).size == (1, 1)


def test_the_first_frame_of_an_animation_counts():
    file = io.BytesIO()
    Image.new("RGB", (9, 9), "red").save(file, "gif", save_all=True, append_images=[Image.new("RGB", (9, 9), "blue")])
    assert decode(file.getvalue(), "it", 32, LIMIT).image.getpixel((4, 4)) == (255, 0, 0)


def test_formats_that_start_programs_are_not_read():
    file = io.BytesIO()
    Image.new("RGB", (9, 9)).save(file, "eps")
    with pytest.raises(RequestError, match="unknown format"):
        decode(file.getvalue(), "it", 32, LIMIT)


def test_large_images_wait_reduced():
    ready = decode(picture((900, 700), (90, 70, 450, 350)), "it", 32, LIMIT)
    assert ready.size == (900, 700)
    assert ready.image.size == (100, 78)

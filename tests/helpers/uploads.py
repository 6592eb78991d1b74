"""Files to upload, whole and damaged."""

import io
import warnings
from typing import Any

from hypothesis import strategies as st
from PIL import Image

from boxwright.deployment.service.limits import RequestError
from boxwright.deployment.service.uploads import decode
from boxwright.images import image_formats

LIMIT = 10**6  # pixels
KINDS = [kind for kind in image_formats() if kind in Image.SAVE]


def picture(size=(96, 64), box=(10, 20, 40, 50), kind="png", **how: Any) -> bytes:
    """A dark image with a white box, as a file."""
    image, file = Image.new("RGB", size, (20, 30, 40)), io.BytesIO()
    image.paste("white", box)
    image.save(file, kind, **how)
    return file.getvalue()


SAMPLES = [picture((33, 21), (3, 4, 20, 18), kind) for kind in KINDS]


@st.composite
def damaged(draw) -> bytes:
    """A file of a known format, cut, changed in places, or joined with another."""
    data = bytearray(draw(st.sampled_from(SAMPLES)))
    for position, value in draw(st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=12)):
        data[position] = value
    if draw(st.booleans()):
        del data[draw(st.integers(0, len(data))) :]
    return bytes(data) + draw(st.one_of(st.just(b""), st.binary(max_size=20), st.sampled_from(SAMPLES)))


def check_decoded(data: bytes) -> None:
    """The bytes are decoded to an image within the limit, or refused with a reason."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of damaged metadata
        try:
            ready = decode(data, "it", 32, LIMIT)
        except RequestError as error:
            refused = error
        else:
            assert ready.image.mode == "RGB"
            assert 0 < ready.size[0] * ready.size[1] <= LIMIT
            assert max(ready.image.size) <= max(ready.size)
            return
    assert refused.status in (400, 413)
    assert str(refused).startswith("it ")

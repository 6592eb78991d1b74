"""A flipped bit in an exported file is found, whatever it hits; what is no text is one line."""

import random
import re
from pathlib import Path

import numpy as np
import pytest

from boxwright.config import UserError
from boxwright.runtime import Detector
from boxwright.runtime.onnx_checksum import with_checksum
from helpers.mutations import flip
from helpers.onnx_files import white_boxes

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def numbers(file: Path) -> list[object]:
    detector = Detector(file, "cpu", threads=1)
    found = detector.predict(IMAGE, threshold=0.0)
    return [detector.facts, found.boxes_N4.tolist(), found.scores_N.tolist(), found.labels_N.tolist()]


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    """A small exported file, with the checksum that `boxwright export` writes."""
    file = white_boxes(tmp_path / "model.onnx")
    file.write_bytes(with_checksum(file.read_bytes()))
    return file


def test_each_flipped_bit_of_graph_and_metadata_is_found_or_harmless(sealed: Path) -> None:
    whole, content, errors = numbers(sealed), sealed.read_bytes(), []
    for bit in random.Random(0).sample(range(8 * len(content)), 200):
        sealed.write_bytes(flip(content, bit))
        try:
            assert numbers(sealed) == whole, f"bit {bit}"
        except UserError as error:
            errors.append(str(error))
    assert len(errors) > 150
    assert not any("\n" in error for error in errors)


@pytest.mark.parametrize("text", [b'["box", "other"]', b'"licence"', b"ReduceMax", b"boxwright"])
def test_a_flip_in_a_known_place_is_found(sealed: Path, text: bytes) -> None:
    content = sealed.read_bytes()
    place = content.index(text) + 2
    for bit in range(8):
        sealed.write_bytes(flip(content, 8 * place + bit))
        with pytest.raises(UserError, match="is damaged: it has another checksum than when it was written"):
            Detector(sealed)


@pytest.mark.parametrize("text", [b'"licence"', b'["box", "other"]', b"image_size"])
def test_metadata_that_is_no_text_is_one_line(tmp_path: Path, text: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    file = white_boxes(tmp_path / "model.onnx")  # without a checksum, as another program may write it
    file.write_bytes(file.read_bytes().replace(text, b"\xff\xfe" + text[2:]))
    with pytest.raises(UserError) as error:
        Detector(file)
    assert re.search(r"model.onnx (was changed since|is no ONNX file|is an ONNX file, but none)", str(error.value))
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")

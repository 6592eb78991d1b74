"""A flipped bit in a file of tensors is found, absurd headers are refused, equal content gives equal files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from boxwright.checkpoints import detector_file
from boxwright.checkpoints.detector_file import load_detector, save_detector
from boxwright.checkpoints.header import read_header, store_in_card
from boxwright.checkpoints.tensors import read_tensors, save_tensors
from boxwright.config import UserError
from boxwright.models import registry
from boxwright.training.state import FILE, Progress, read_state, save_state

SMALL = {"image_size": 96, "backbone": "test_efficientnet", "pretrained": False}


@pytest.fixture(scope="module")
def detector():
    return registry.build(
        "dense", "nano", ("cat", "dog"), image_size=96, backbone="test_efficientnet", pretrained=False
    )


def flips(file: Path, count: int, first_bytes: int | None = None):
    """The file with one flipped bit, for each of some bits of it or of its beginning; then it is whole again."""
    content = file.read_bytes()
    for bit in np.random.default_rng(0).integers(0, 8 * (first_bytes or len(content)), count).tolist():
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        yield bit
    file.write_bytes(content)


def test_a_flipped_bit_of_a_checkpoint_changes_no_number_unseen(detector, tmp_path):
    file = tmp_path / "best.safetensors"
    save_detector(file, detector, {"epoch": 3})
    whole, header = detector.state_dict(), 8 + int.from_bytes(file.read_bytes()[:8], "little")
    for first in (None, header):
        for bit in flips(file, 25, first):
            try:
                found = load_detector(file)
            except UserError:
                continue
            assert bit < 8 * header
            assert (found.config, found.names, found.card) == (detector.config, detector.names, {"epoch": 3})
            assert all(torch.equal(value, whole[key]) for key, value in found.state_dict().items())


def test_a_flipped_bit_of_a_state_changes_no_number_unseen(tmp_path):
    model = torch.nn.Linear(30, 20)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 30)).sum().backward()
    optimizer.step()
    save_state(tmp_path, Progress(3, 0.5, 1, "abc"), model, None, optimizer)
    progress, tensors = read_state(tmp_path)
    for _ in flips(tmp_path / FILE, 200):
        try:
            found = read_state(tmp_path)
        except UserError:
            continue
        assert found[0] == progress
        assert found[1].keys() == tensors.keys()
        assert all(torch.equal(value, tensors[key]) for key, value in found[1].items())


def test_facts_stored_in_a_card_are_sealed_again(detector, tmp_path):
    file = tmp_path / "best.safetensors"
    save_detector(file, detector, {"epoch": 3})
    store_in_card(file, {"epoch": 4})
    assert load_detector(file).card == {"epoch": 4}
    file.write_bytes(
        file.read_bytes().replace(b'"epoch\\": 4', b'"epoch\\": 5').replace(b'"epoch\\":4', b'"epoch\\":5')
    )
    with pytest.raises(UserError, match="is damaged: its header has another checksum"):
        load_detector(file)


def test_files_without_checksums_are_read(detector, tmp_path):
    file = tmp_path / "best.safetensors"
    save_detector(file, detector, {})
    header = {key: value for key, value in read_header(file).items() if "crc32" not in key}
    save_file({key: value.contiguous() for key, value in detector.state_dict().items()}, file, metadata=header)
    load_detector(file)
    header["checksum"] = "0"
    save_file({key: value.contiguous() for key, value in detector.state_dict().items()}, file, metadata=header)
    with pytest.raises(UserError, match="its tensors have another checksum"):
        load_detector(file)


def test_equal_content_gives_equal_files(tmp_path):
    tensors = {"b": torch.arange(3), "a": torch.ones(2, 2, dtype=torch.bfloat16)}
    metadata = {name: f'"{name}\n\x7f\x1f\\é😀' for name in "hgfedcba"}
    written = []
    for _ in range(8):
        save_tensors(tensors, tmp_path / "x", metadata)
        written.append((tmp_path / "x").read_bytes())
    assert len(set(written)) == 1
    header, found = read_tensors(tmp_path / "x", "tensors")
    assert metadata.items() <= header.items()
    assert all(torch.equal(found[key], value) for key, value in tensors.items())


def test_a_checkpoint_is_verified_once(detector, tmp_path, monkeypatch):
    save_detector(tmp_path / "best.safetensors", detector, {})
    read, calls = detector_file.read_tensors, []
    monkeypatch.setattr(detector_file, "read_tensors", lambda *args: calls.append(args) or read(*args))
    monkeypatch.setattr(detector_file, "checksum", None)
    load_detector(tmp_path)
    assert len(calls) == 1


@pytest.mark.parametrize(
    "change",
    [{"channels": 2**19}, {"channels": 10**12}, {"depth": 10**9}, {"depth": 900_000}, {"image_size": 10**6},
     {"rivals": -(2**40)}, {"channels": 1e300}, {"strides": [8, 16, 2**62]}],
)  # fmt: skip
def test_absurd_shapes_are_refused_before_layers_are_built(detector, tmp_path, change):
    file = tmp_path / "best.safetensors"
    save_detector(file, detector, {})
    with safe_open(file, framework="pt") as stored:
        header = {key: value for key, value in stored.metadata().items() if "crc32" not in key}
    header["config"] = json.dumps(json.loads(header["config"]) | change)
    save_file({key: value.contiguous() for key, value in detector.state_dict().items()}, file, metadata=header)
    with pytest.raises(UserError):
        load_detector(file)


@pytest.mark.parametrize("name", ["a\x1b[31mb", "a\nb", "a\x00", "\x85", "a\u2028b", "\ud800", "a\u202eb"])
def test_control_characters_in_class_names_do_not_enter(detector, tmp_path, name):
    file = tmp_path / "best.safetensors"
    odd = registry.build("dense", "nano", (name, "b"), **SMALL)
    with pytest.raises(UserError, match="has a control character"):
        save_detector(file, odd, {})
    save_detector(file, detector, {})
    header = {key: value for key, value in read_header(file).items() if "crc32" not in key}
    header["names"] = json.dumps([name, "b"])
    save_file({key: value.contiguous() for key, value in detector.state_dict().items()}, file, metadata=header)
    with pytest.raises(UserError, match="has a control character"):
        load_detector(file)

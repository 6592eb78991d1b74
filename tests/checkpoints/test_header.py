import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from boxwright.checkpoints.header import read_header, store_in_card
from boxwright.config import UserError


@pytest.mark.parametrize("metadata", [None, {"format": "boxwright-1", "é": "ü"}])
def test_the_metadata_is_what_safetensors_wrote(tmp_path, metadata):
    file = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(3, 2), "b": torch.zeros(0)}, file, metadata=metadata)
    assert read_header(file) == (metadata or {})


def test_every_cut_is_refused(tmp_path):
    file = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(3)}, file, metadata={"format": "boxwright-1"})
    content = file.read_bytes()
    for length in range(len(content)):
        file.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"x.safetensors is (no safetensors file|cut short)"):
            read_header(file)


@pytest.mark.parametrize("header", [[], {"__metadata__": 1}, {"a": 1}, {"a": {"data_offsets": []}}, None, 3])
def test_other_headers_are_refused(tmp_path, header):
    text = json.dumps(header).encode()
    (tmp_path / "x").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(UserError, match="is no safetensors file"):
        read_header(tmp_path / "x")


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match="nothere can't be read: No such file"):
        read_header(tmp_path / "nothere")


@pytest.mark.parametrize("length", range(9))
def test_facts_are_added_to_the_card_and_nothing_else_changes(tmp_path, length):
    file = tmp_path / "x.safetensors"
    tensors = {"a": torch.randn(3, 2).half(), "b": torch.arange(5), "c": torch.randn(1)}
    card = {"epoch": 3, "thresholds": {"overall": 0.1}}
    save_file(tensors, file, {"format": "boxwright-1", "card": json.dumps(card), "checksum": "c"})
    store_in_card(file, {"thresholds": {"overall": 0.25}, "é" * length: 1})
    header = read_header(file)
    assert json.loads(header.pop("card")) == {"epoch": 3, "thresholds": {"overall": 0.25}, "é" * length: 1}
    assert header == {"format": "boxwright-1", "checksum": "c"}
    with safe_open(file, "pt") as stored:
        for key, value in tensors.items():
            assert stored.get_tensor(key).dtype == value.dtype
            assert torch.equal(stored.get_tensor(key), value)


def test_a_card_that_cannot_be_written_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    file = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(3)}, file, {"card": "{}"})
    content = file.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(UserError, match=r"x.safetensors can't be written: No space left"):
        store_in_card(file, {"epoch": 3})
    assert file.read_bytes() == content
    assert list(tmp_path.iterdir()) == [file]

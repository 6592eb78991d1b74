import json

import pytest
import torch
from safetensors.torch import save_file

from boxwright.checkpoints.header import read_header
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

import argparse
import os
import pickle

import numpy as np
import pytest
import torch

from boxwright.config import UserError
from boxwright.interop.pickles import read_pickle

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.zeros(())}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"model": s, "epoch": 3}, lambda s: {"meta": {}, "state_dict": s}]
)
def test_all_wrappers(tmp_path, wrap, zipped):
    torch.save(
        wrap({f"module.{name}": value for name, value in STATE.items()}),
        tmp_path / "x.pth",
        _use_new_zipfile_serialization=zipped,
    )
    tensors, options = read_pickle(tmp_path / "x.pth")
    assert {name: value.tolist() for name, value in tensors.items()} == {n: v.tolist() for n, v in STATE.items()}
    assert options == {}


def test_the_options_of_a_run_are_data(tmp_path):
    content = {
        "model": STATE,
        "args": argparse.Namespace(nheads=4, lr=1e-4),
        "ap": np.float64(0.37),
        "optimizer": {"state": {}},
    }
    torch.save(content, tmp_path / "x.pth")
    assert read_pickle(tmp_path / "x.pth").options == {"nheads": 4, "lr": 1e-4}


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_never_runs(tmp_path, zipped):
    target = tmp_path / "hacked"
    torch.save({"model": STATE, "args": Malicious(target)}, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"x.pth is a pickle that asks for (posix|nt).mkdir, .* it was not read.$"):
        read_pickle(tmp_path / "x.pth")
    assert not target.exists()
    (tmp_path / "y.pth").write_bytes(pickle.dumps(Malicious(target)))
    with pytest.raises(UserError, match=r"y.pth"):
        read_pickle(tmp_path / "y.pth")
    assert not target.exists()


def test_code_behind_harmless_names_never_runs(tmp_path):
    hidden = argparse.Namespace(nheads=8, more=Malicious(tmp_path / "hacked"))
    torch.save({"model": STATE, "args": hidden}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="mkdir"):
        read_pickle(tmp_path / "x.pth")
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_files_that_are_cut_short_are_refused(tmp_path, zipped):
    torch.save({"model": STATE}, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    content = (tmp_path / "x.pth").read_bytes()
    for length in range(0, len(content), len(content) // 20):
        (tmp_path / "x.pth").write_bytes(content[:length])
        with pytest.raises(
            UserError, match=r"x.pth is (no PyTorch checkpoint, or it is cut short or damaged|a pickle that)"
        ):
            read_pickle(tmp_path / "x.pth")


@pytest.mark.parametrize("content", [torch.zeros(3), [STATE], {"epoch": 3}, {"model": {}}, {1: torch.zeros(1)}])
def test_files_without_named_tensors_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match="holds no tensors by name"):
        read_pickle(tmp_path / "x.pth")


def test_flipped_bytes_are_found(tmp_path):
    torch.save({"model": STATE}, tmp_path / "x.pth")
    content = bytearray((tmp_path / "x.pth").read_bytes())
    at = content.index(STATE["a.weight"].numpy().tobytes())
    content[at + 7] ^= 0x10
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"x.pth is damaged: the checksum of its part .*data/0 is wrong"):
        read_pickle(tmp_path / "x.pth")


def test_a_protocol_that_torch_does_not_know_is_no_warning(tmp_path, recwarn):
    (tmp_path / "x.pth").write_bytes(pickle.dumps({"a": 1}, protocol=4))
    with pytest.raises(UserError, match=r"x.pth is no PyTorch checkpoint"):
        read_pickle(tmp_path / "x.pth")
    assert not recwarn.list

"""What is wrong with an installation is said, with its mend."""

import importlib.metadata
import shutil
import sys
from collections import namedtuple

import pytest

from boxwright.__main__ import main
from boxwright.installation import doctor as module
from boxwright.installation.doctor import doctor

REQUIRED = ["numpy>=2", 'torch>=2.11; extra == "train"', 'boxwright[parquet]; extra == "ray"', 'ray>=1; extra == "ray"']


@pytest.fixture
def required(monkeypatch, tmp_path):
    monkeypatch.setenv("BOXWRIGHT_CACHE", str(tmp_path))
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: REQUIRED)

    def versions(**known):
        monkeypatch.setattr(module, "_version", known.get)

    return versions


def test_all_is_well(required, capsys):
    required(numpy="2.4", torch="2.12.1+cu130")
    found = doctor()
    assert (found.faults, found.exit_code) == ([], 0)
    assert "part train: installed" in found.facts
    assert 'part ray: not installed (ray); python -m pip install "boxwright[ray]" brings it' in found.facts
    assert "Nothing is wrong." in capsys.readouterr().out


def test_versions_that_do_not_fit(required):
    required(torch="2.5.0")
    found = doctor()
    assert found.exit_code == 1
    assert "torch is 2.5.0, and >=2.11 is needed: python -m pip install 'torch>=2.11'" in found.faults
    assert "numpy not installed: python -m pip install numpy" in found.faults


def test_too_little_disk(required, monkeypatch):
    required(numpy="2")
    usage = namedtuple("Usage", "total used free")(10**9, 10**9, 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert any("boxwright cache --clear" in fault for fault in doctor().faults)


def test_it_needs_no_torch(required, monkeypatch, capsys):
    required(numpy="2")
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["doctor"]) == 0
    assert "CPU core" in capsys.readouterr().out

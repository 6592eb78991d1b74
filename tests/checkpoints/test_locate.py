"""The detectors that come with the package are meant by their names."""

import shutil
from pathlib import Path

import pytest

import boxwright
from boxwright.checkpoints.locate import BUNDLED, find_weights, results_folder
from boxwright.config import UserError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", BUNDLED)
def test_a_name_stands_for_the_weights(name):
    assert find_weights(Path(name)) == BUNDLED[name]
    assert BUNDLED[name].is_file()
    assert results_folder(name) == Path()


def test_weights_of_that_name_come_first(tmp_path):
    shutil.copy(BUNDLED["demo"], "demo.safetensors")
    assert find_weights(Path("demo")) == Path("demo.safetensors")
    Path("demo.safetensors").unlink()
    Path("demo").mkdir()
    assert find_weights(Path("demo")) == BUNDLED["demo"]
    shutil.copy(BUNDLED["demo"], "demo/best.safetensors")
    assert find_weights(Path("demo")) == Path("demo/best.safetensors")
    assert results_folder("demo") == Path("demo")


def test_a_misspelt_name_is_told():
    with pytest.raises(UserError, match=r"no weights at dmeo; .* \(did you mean 'demo'\?\)"):
        find_weights(Path("dmeo"))


def test_nothing_is_written_into_the_package(tmp_path):
    with pytest.raises(UserError, match="is a file of this package"):
        boxwright.evaluate("demo", tmp_path, store=True)


def test_it_detects():
    image = next((BUNDLED["demo"].parent / "bccd").rglob("*.jpg"))
    assert len(boxwright.load("demo").predict(image)) > 3

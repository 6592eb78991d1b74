"""Which file is opened by which predictor, and the errors where there is none."""

import sys
from pathlib import Path

import pytest

from boxwright.config import UserError
from boxwright.inference.open_detector import open_detector


@pytest.fixture(autouse=True)
def _no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boxwright.inference.predictor", None)


@pytest.mark.parametrize("name", ["nothere", ".", "nothere.safetensors"])
def test_what_is_not_there_is_said_before_torch_is_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"no weights at {name}; give"):
        open_detector(name)
    (tmp_path / "nothere.onnx").touch()
    if name != "nothere.safetensors":
        with pytest.raises(UserError, match=f"no weights at {name}; .*; nothere.onnx is an exported file"):
            open_detector(name)


@pytest.mark.parametrize("name", ["best", "best.safetensors", "."])
def test_what_is_there_or_on_the_hub_needs_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "best.safetensors").touch()
    for weights in (name, "someone/cells"):
        with pytest.raises(ModuleNotFoundError):
            open_detector(weights)


@pytest.mark.parametrize("name", ["best", "best.safetensors", "."])
def test_of_two_files_the_one_that_needs_no_torch_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in ("best.onnx", "best.safetensors"):
        (tmp_path / file).touch()
    with pytest.raises(UserError, match=r"is not installed: .* best.onnx runs without torch\."):
        open_detector(name)


def test_the_bundled_detector_needs_no_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_detector("demo").names == ("Platelets", "RBC", "WBC")


def test_an_exported_file_of_another_name_is_opened(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"\x08\x0a\x12\x07pytorch")
    with pytest.raises(UserError, match="is no ONNX file, is cut short"):
        open_detector(tmp_path / "model")

"""The installation without further parts has no torch, and needs none."""

import os
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from helpers.onnx_files import white_boxes

ROOT = Path(__file__).parents[2]
BOX = (64, 32, 192, 96)
HEAVY = ("torch", "torchvision", "timm", "matplotlib", "scipy", "supervision", "safetensors")


def _run(command: Sequence[str | Path], folder: Path, code: int = 0) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def test_the_runtime_imports_nothing_heavy(onnx_file: Path, paint: Callable[..., Path], tmp_path: Path) -> None:
    image = paint(tmp_path / "x.png", (256, 128), BOX)
    code = (
        "import sys; from boxwright.__main__ import main\n"
        f"assert main(['predict', {str(onnx_file)!r}, {str(image)!r}]) == 0\n"
        f"heavy = set({HEAVY}) & set(sys.modules); assert not heavy, heavy"
    )
    assert "1 object in 1 image: box 1" in _run([sys.executable, "-c", code], tmp_path)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has boxwright without further parts, and nothing else."""
    folder = tmp_path_factory.mktemp("light")
    copy = folder / "copy"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (copy / name).write_bytes((ROOT / name).read_bytes())
    for file in (ROOT / "src/boxwright").rglob("*.py"):  # the bundled images would take longer than all the rest
        target = copy / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    venv.create(folder / "venv", with_pip=True)
    interpreter = next(file for file in (folder / "venv").glob("*/python*") if file.stem == "python")
    install = [interpreter, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", copy]
    done = subprocess.run(install, capture_output=True, text=True)
    if "No matching distribution found" in done.stderr:
        pytest.skip("pip has no index to install onnxruntime from")
    assert done.returncode == 0, done.stderr
    return interpreter


@pytest.mark.slow
def test_it_works_where_torch_is_not_installed(python: Path, paint: Callable[..., Path], tmp_path: Path) -> None:
    model, image = white_boxes(tmp_path / "model.onnx"), paint(tmp_path / "x.png", (256, 128), BOX)
    packages = _run([python, "-m", "pip", "list"], tmp_path).split()
    assert "onnxruntime" in packages
    assert not set(HEAVY) & set(packages)
    boxwright = python.with_name("boxwright")
    assert "1 object in 1 image: box 1" in _run([boxwright, "predict", model, image], tmp_path)
    assert (tmp_path / "predictions/overlays/x.png").is_file()
    code = f"from boxwright.runtime import Detector; print(Detector('model.onnx').predict({str(image)!r}).boxes_N4[0])"
    output = _run([python, "-c", code], tmp_path).strip(" []\n")
    np.testing.assert_array_equal([float(number) for number in output.split()], BOX)
    assert "predict" in _run([boxwright, "--help"], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["train", "DATA"], ["evaluate", "W", "DATA"], ["explain", "W", "x.png"], ["compare", "DATA"], ["models"],
        ["export", "W", "--to", "onnx"], ["import-weights", "IN", "OUT"], ["demo", "--train"], ["predict", "W", "."],
    ],
    ids=lambda command: command[0],
)  # fmt: skip
def test_a_verb_that_needs_torch_says_what_to_install(
    python: Path, paint: Callable[..., Path], tmp_path: Path, command: list[str]
) -> None:
    paint(tmp_path / "x.png", (256, 128), BOX)
    (tmp_path / "W").write_bytes(b"a checkpoint")
    output = _run([python.with_name("boxwright"), *command], tmp_path, code=2)
    assert output.startswith(f"error: `boxwright {command[0]}` needs torch, ")
    assert output.endswith('which is not installed: python -m pip install "boxwright[train]" brings it.\n')
    assert output.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["nothere", ".", "no.safetensors"])
def test_weights_that_are_not_there_are_named_first(
    python: Path, paint: Callable[..., Path], tmp_path: Path, weights: str
) -> None:
    paint(tmp_path / "x.png", (256, 128), BOX)
    output = _run([python.with_name("boxwright"), "predict", weights, "x.png"], tmp_path, code=2)
    assert output.startswith(f"error: no weights at {weights}; ")

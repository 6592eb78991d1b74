"""The process is left as it was: hooks, loggers, warnings, signals, environment and the globals of libraries."""

import json
import os
import subprocess
import sys

import pytest

from helpers.frozen import FILES, unpack

pytestmark = pytest.mark.slow

CODE = """
import json, logging, os, signal, sys, threading, warnings
from pathlib import Path

def state():
    found = {
        "hooks": [sys.excepthook, sys.unraisablehook, threading.excepthook],
        "root logger": [logging.root.handlers, logging.root.level, logging.root.disabled, logging.root.manager.disable],
        "warnings": [warnings.showwarning, warnings.formatwarning],
        "filters": warnings.filters,
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "environment": dict(os.environ),
    }
    if torch := sys.modules.get("torch"):
        found["torch"] = [torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()]
    if "PIL.Image" in sys.modules:
        from PIL import Image, ImageFile
        found["PIL"] = [Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES]
    return {name: repr(value) for name, value in found.items()}

def changed_by(run):
    before = state()
    run()
    after = state()
    return [name for name in before if before[name] != after[name]]

def import_everything():
    import boxwright, boxwright.__main__, boxwright.deployment.onnx.quantise, boxwright.deployment.serve
    for name in boxwright.__all__:
        getattr(boxwright, name)

def quantise():
    import numpy, onnx
    from boxwright.deployment.onnx.quantise import to_int8
    to_int8(onnx.load("dense.onnx"), [numpy.zeros((64, 64, 3), "uint8")], ())

def train():
    from boxwright.__main__ import main
    assert main(["train", "data", "--weights", "dense.safetensors", "--epochs", "1", "--batch-size", "2"]) == 0

changed = {"import": changed_by(lambda: __import__("boxwright")), "imports": changed_by(import_everything)}
changed |= {run.__name__: changed_by(run) for run in (train, quantise)}
Path("changed.json").write_text(json.dumps(changed))
"""


@pytest.fixture(scope="module")
def changed(tmp_path_factory) -> dict[str, list[str]]:
    """What was found changed, by what changed it."""
    folder = tmp_path_factory.mktemp("process")
    (folder / "data").symlink_to(FILES / "data")
    for name in ("dense.safetensors", "dense.onnx"):
        unpack(name, folder)
    environment = os.environ | {"BOXWRIGHT_CACHE": str(folder / "cache")}
    subprocess.run([sys.executable, "-c", CODE], cwd=folder, check=True, capture_output=True, env=environment)
    return json.loads((folder / "changed.json").read_text())


def test_an_import_changes_nothing(changed):
    assert changed["import"] == []


def test_libraries_change_their_own_settings_only(changed):
    """Filters of warnings of their own, and torch's and Fabric's environment variables."""
    assert set(changed["imports"]) <= {"filters", "environment"}


@pytest.mark.parametrize("run", ["train", "quantise"])
def test_a_run_changes_nothing(changed, run):
    assert changed[run] == []

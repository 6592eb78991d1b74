"""A small exported detector."""

from pathlib import Path

import pytest

from boxwright.runtime import Detector
from helpers.onnx_files import white_boxes


@pytest.fixture(scope="session")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return white_boxes(tmp_path_factory.mktemp("onnx") / "model.onnx")


@pytest.fixture(scope="session")
def detector(onnx_file: Path) -> Detector:
    return Detector(onnx_file, "cpu")

"""A small exported detector."""

from pathlib import Path

import pytest
from onnx_samples import white_boxes

from boxwright.runtime import Detector


@pytest.fixture(scope="session")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return white_boxes(tmp_path_factory.mktemp("onnx") / "model.onnx")


@pytest.fixture(scope="session")
def detector(onnx_file: Path) -> Detector:
    return Detector(onnx_file, "cpu")

"""A detector as ONNX, exported once."""

import onnx
import pytest

from boxwright.deployment.onnx.onnx_file import to_onnx
from boxwright.types import Detector
from helpers.untrained import untrained


@pytest.fixture(scope="session")
def dense() -> tuple[Detector, onnx.ModelProto]:
    """An untrained `dense`, and its graph, which takes ten seconds; neither may be changed."""
    detector = untrained("dense")
    return detector, to_onnx(detector)

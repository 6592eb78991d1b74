"""Detectors as ONNX, each exported once."""

import onnx
import pytest

from boxwright.deployment.onnx import onnx_file
from boxwright.types import Detector


@pytest.fixture(scope="session")
def _graphs() -> dict[type[Detector], bytes]:
    return {}


@pytest.fixture
def exported_once(_graphs: dict[type[Detector], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests whose detectors all come from `untrained`: an export takes ten seconds and more."""
    to_onnx = onnx_file.to_onnx

    def once(detector: Detector) -> onnx.ModelProto:
        kind = type(detector)
        if kind not in _graphs:
            _graphs[kind] = to_onnx(detector).SerializeToString()
        return onnx.ModelProto.FromString(_graphs[kind])

    monkeypatch.setattr(onnx_file, "to_onnx", once)

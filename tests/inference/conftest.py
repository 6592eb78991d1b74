"""Weights without a network behind them."""

from pathlib import Path

import pytest

from boxwright.inference import job
from boxwright.inference.predictor import Predictor
from boxwright.types import Detector


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch, white_boxes: Detector, tmp_path: Path) -> Path:
    """A file whose content stands for weights; the detector finds white boxes."""
    monkeypatch.setattr(job, "open_detector", lambda *_: Predictor(white_boxes))
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"weights")
    return file

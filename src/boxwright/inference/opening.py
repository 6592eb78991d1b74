"""A detector from whichever kind of file it is in."""

from pathlib import Path

from boxwright.runtime.detector import Detector
from boxwright.runtime.finder import Finder


def open_detector(path: Path | str, device: str = "auto") -> Finder:
    """The detector of an exported ``.onnx`` file, which needs no torch, or of a checkpoint.

    Args:
        path: the file, or for a checkpoint what `boxwright.load` takes.
        device: auto, cpu, cuda, or for a checkpoint mps.

    Raises:
        UserError: if there is no detector, or the device is not there.
    """
    if Path(path).suffix.lower() == ".onnx":
        return Detector(path, device)
    from boxwright.inference.predictor import load  # brings torch

    return load(path, device)

"""The predictor of a detector, from whichever kind of file it is in."""

from pathlib import Path

from boxwright.checkpoints.hub import repository
from boxwright.checkpoints.locate import exported_at, exported_bundled, find_weights, is_bundled, is_exported
from boxwright.config import UserError
from boxwright.extras import how_to_install
from boxwright.runtime.onnx_detector import Detector
from boxwright.runtime.predictor_base import BasePredictor


def open_detector(path: Path | str, device: str = "auto") -> BasePredictor:
    """The predictor of an exported file, which needs no torch, or of a checkpoint.

    Args:
        path: the file, or for a checkpoint what `boxwright.load` takes.
        device: auto, cpu, cuda, or for a checkpoint mps.

    Raises:
        UserError: if there is no detector, or the device is not there.
    """
    path = Path(path).expanduser()
    if is_exported(path):
        return Detector(path, device)
    try:
        from boxwright.inference.predictor import load  # brings torch
    except ModuleNotFoundError as error:
        if is_bundled(path):
            return Detector(exported_bundled(str(path)), device)
        if repository(path) is None:
            find_weights(path)  # weights that are not there come first: torch would be installed in vain
        if onnx := exported_at(path.with_suffix("") if path.suffix == ".safetensors" else path):
            raise UserError(f"{how_to_install(str(path), error.name)} {onnx} runs without torch.") from None
        raise
    return load(path, device)

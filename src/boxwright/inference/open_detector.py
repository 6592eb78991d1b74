"""A detector from whichever kind of file it is in."""

from pathlib import Path

from boxwright.checkpoints.hub import repository
from boxwright.checkpoints.locate import exported_at, weights_at
from boxwright.config import UserError
from boxwright.extras import how_to_install
from boxwright.runtime.onnx_detector import Detector
from boxwright.runtime.predictor_base import BasePredictor


def open_detector(path: Path | str, device: str = "auto") -> BasePredictor:
    """The detector of an exported file, which needs no torch, or of a checkpoint.

    Args:
        path: the file, or for a checkpoint what `boxwright.load` takes.
        device: auto, cpu, cuda, or for a checkpoint mps.

    Raises:
        UserError: if there is no detector, or the device is not there.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() == ".onnx" or (path.is_file() and exported_at(path)):
        return Detector(path, device)
    try:
        from boxwright.inference.predictor import load  # brings torch
    except ModuleNotFoundError as error:
        _require_weights(path)  # before torch is installed in vain
        if onnx := exported_at(path.with_suffix("") if path.suffix == ".safetensors" else path):
            raise UserError(f"{how_to_install(str(path), error.name)} {onnx} runs without torch.") from None
        raise
    return load(path, device)


def _require_weights(path: Path) -> None:
    """Raise `UserError` unless there are weights at `path`, or it may mean a repository of the hub."""
    if weights_at(path) is None and repository(path) is None:
        onnx = exported_at(path)
        mend = f"there is {onnx}" if onnx else "give an .onnx or .safetensors file or the folder of a training run"
        raise UserError(f"no weights at {path}; {mend}.")

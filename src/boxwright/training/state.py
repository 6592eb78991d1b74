"""The state of a run in one safetensors file: all that is needed to resume it exactly; nothing is pickled.

The state of random generators is not saved: every draw of a run is a function of (seed, step, rank).
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from boxwright.checkpoints.tensors import read_tensors, save_tensors
from boxwright.config import UserError
from boxwright.files import write_whole

FORMAT = "boxwright-state-2"
READABLE = ("boxwright-state-1", FORMAT)  # the first has neither checksums nor the last two fields of `Progress`
FILE = "state.safetensors"


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        step: optimizer steps done.
        best_ap: the best validation AP so far; -1 before the first validation.
        best_epoch: epochs done when it was reached.
        recipe: checksum of the settings and data that may not change when the run is resumed.
        teacher: checksum of the teacher; empty without one, None in states of an earlier version.
        adjustable: the settings that may change when the run is resumed; None in states of an earlier version.
        data: checksums of images and annotations that `recipe` leaves out; None in states of an earlier version.
    """

    step: int = 0
    best_ap: float = -1.0
    best_epoch: int = 0
    recipe: str = ""
    teacher: str | None = None
    adjustable: dict[str, Any] | None = None
    data: dict[str, str] | None = None


def save_state(folder: Path, progress: Progress, model: nn.Module, average: nn.Module | None, optimizer: Any) -> None:
    """Write the state into `folder`, whole or not at all."""
    tensors = {f"model.{key}": value for key, value in model.state_dict().items()}
    if average is not None:
        tensors |= {f"average.{key}": value for key, value in average.state_dict().items()}
    tensors |= _flatten(optimizer.state_dict()["state"])
    tensors = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in tensors.items()}
    header = {"format": FORMAT, "progress": json.dumps(asdict(progress))}
    write_whole(folder / FILE, lambda temporary: save_tensors(tensors, temporary, metadata=header))


def read_state(folder: Path, teacher: str = "") -> tuple[Progress, dict[str, Tensor]]:
    """How far the run in `folder` had come, and the tensors of its state, for `restore`.

    Args:
        folder: of the run.
        teacher: checksum of the teacher that it is resumed with; empty without one.

    Raises:
        UserError: if there is no state in `folder`, or it is damaged, or of a run with another teacher.
    """
    return _read(folder, teacher)


def read_progress(folder: Path, teacher: str = "") -> Progress:
    """`read_state` without the tensors, which are not checked."""
    return _read(folder, teacher, header_only=True)[0]


def _read(folder: Path, teacher: str, header_only: bool = False) -> tuple[Progress, dict[str, Tensor]]:
    file = folder / FILE
    if not file.is_file():
        raise UserError(f"nothing to resume: {file} does not exist; leave --resume out.")
    header, tensors = read_tensors(file, "the state of a boxwright run", header_only)
    if header.get("format") not in READABLE:
        raise UserError(f"{file} is not the state of a boxwright run, or of a newer version.")
    try:
        progress = Progress(**json.loads(header["progress"]))
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{file} is damaged: it does not say how far the run had come.") from error
    if progress.teacher not in (None, teacher):
        begun = "another teacher" if progress.teacher and teacher else "a teacher" if progress.teacher else "no teacher"
        raise UserError(f"{folder} was begun with {begun}; resume as its config.yaml says.")
    return progress, tensors


def restore(
    folder: Path, tensors: dict[str, Tensor], model: nn.Module, average: nn.Module | None, optimizer: Any
) -> None:
    """Load the tensors of the state in `folder` into model, average and optimizer.

    Raises:
        UserError: if they are those of another network.
    """
    file = folder / FILE
    try:
        model.load_state_dict(_part(tensors, "model."))
        if average is not None:
            average.load_state_dict(_part(tensors, "average."))
    except RuntimeError as error:
        raise UserError(
            f"{file} holds another network; resume with the model, the size and the version of boxwright it began with."
        ) from error
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": _unflatten(_part(tensors, "optimizer.")), "param_groups": groups})
    for parameter, entries in optimizer.state.items():
        for name, value in entries.items():
            if value.shape == parameter.shape:  # a fused step needs the same memory layout
                entries[name] = torch.empty_like(parameter, requires_grad=False).copy_(value)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _flatten(state: dict[int, dict[str, Any]]) -> dict[str, Tensor]:
    """AdamW's state, ``{0: {"exp_avg": ...}}``, as ``optimizer.0.exp_avg``."""
    return {
        f"optimizer.{index}.{key}": torch.as_tensor(value)
        for index, entries in state.items()
        for key, value in entries.items()
    }


def _unflatten(tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".")
        state.setdefault(int(index), {})[name] = value
    return state

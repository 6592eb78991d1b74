"""Weights on disk: one safetensors file whose header holds the shape of the network, its classes and its card.

A checkpoint is never code: nothing is unpickled.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from glob import escape
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from boxwright.config import UserError
from boxwright.files import write_whole
from boxwright.models import zoo
from boxwright.types import Detector

FORMAT = "boxwright-1"
CHECKPOINT = "a boxwright checkpoint"
OTHERS = ("*.index", "*.data-*-of-*", "model.safetensors", "pytorch_model.bin", "*.pth", "*.pt", "*.bin")


def save_detector(
    path: Path, detector: Detector, card: dict[str, Any], check: Callable[[Path], Any] = lambda file: None
) -> None:
    """Write the detector to `path` (whole or not at all).

    Args:
        path: the file.
        detector: what to write.
        card: any facts about its making that fit into JSON.
        check: called with what was written before it gets its name; it keeps its name from it by an exception.

    Raises:
        UserError: if the file can't be written; what was there before stays.
    """
    header = {
        "format": FORMAT,
        "model": zoo.name_of(detector),
        "config": json.dumps(asdict(detector.config)),  # type: ignore[arg-type]
        "names": json.dumps(detector.names),
        "card": json.dumps(card),
    }
    state = {key: value.contiguous() for key, value in detector.state_dict().items()}

    def write(temporary: Path) -> None:
        save_file(state, temporary, metadata=header)
        check(temporary)

    write_whole(path, write)


def load_detector(path: Path | str, device: torch.device | str = "cpu") -> Detector:
    """The detector stored at `path`, in evaluation mode, with its card in `detector.card`.

    Args:
        path: a ``.safetensors`` file, with or without the ending, or the folder of a run.
        device: where to put it.

    Raises:
        UserError: if there is no such file, or it is not ours, or cut short, or a pickle.
    """
    file = find_weights(Path(path))
    header, state = read_tensors(file, CHECKPOINT)
    if header.get("format") != FORMAT:
        mend = f"give one that `train` wrote; {_mend(file)}"
        raise UserError(f"{file} is a safetensors file, but not a boxwright checkpoint; {mend}")
    try:
        names, config, card = (json.loads(header[key]) for key in ("names", "config", "card"))
        detector = zoo.rebuild(header["model"], config, tuple(names))
        detector.load_state_dict(state)
    except UserError:
        raise
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(f"{file} does not fit the detector it names, or is damaged ({reason}).") from error
    detector.card = card  # type: ignore[assignment]
    return detector.to(device).eval()


def find_weights(path: Path) -> Path:
    """The file meant by ``runs/x``, ``runs/x/best`` or ``runs/x/best.safetensors``."""
    named = [path.with_name(path.name + ".safetensors")] if path.name else []
    options = [path, *named, path / "best.safetensors", path / "last.safetensors"]
    found = next((option for option in options if option.is_file()), None)
    if found is None:
        beside = sorted(path.parent.glob(f"{escape(path.name)}.*")) if path.name else []
        others = [path] if any(any(path.glob(pattern)) for pattern in OTHERS) else beside
        other = next((one for one in others if one == path or any(one.match(pattern) for pattern in OTHERS)), None)
        mend = "give a .safetensors file or the folder of a training run"
        raise UserError(f"no weights at {path}; {mend}{'; ' + _mend(other) if other else '.'}")
    return found


def _mend(source: Path) -> str:
    """What to do with a checkpoint of another project."""
    return f"`boxwright import-weights {source} OUT` converts checkpoints of other projects."


def read_tensors(file: Path, what: str) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Header and tensors of a safetensors file; `what` names the expected content in the error."""
    try:
        with safe_open(file, framework="pt") as stored:
            return stored.metadata() or {}, {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
    except SafetensorError as error:
        with file.open("rb") as stream:
            start = stream.read(2)
        pickled = start in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
        foreign = f"no safetensors file, or one that is cut short or damaged ({error})"
        reason = "a pickle, which could run code and is never opened" if pickled else foreign
        other = what == CHECKPOINT and (pickled or any(file.match(pattern) for pattern in OTHERS))
        mend = f" {_mend(file)}" if other else ""
        raise UserError(f"{file} is not {what}: it is {reason}.{mend}") from error
    except OSError as error:
        raise UserError(f"{file} can't be read: {error.strerror or error}.") from error

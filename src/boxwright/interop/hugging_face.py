"""Folders as Hugging Face's libraries write them: a configuration and tensors; only DETR's kind is known."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from boxwright.checkpoints.tensors import read_tensors
from boxwright.config import UserError, require
from boxwright.interop.classes import Classes
from boxwright.interop.pickles import read_pickle
from boxwright.models.replication import MEAN, STD

KINDS = ("detr", "deformable_detr")


def find_folder(source: Path) -> Path | None:
    """The folder of a `config.json` and tensors, given itself or one of these files; None if it is no such."""
    folder = source if source.is_dir() else source.parent
    named = source.is_dir() or source.name in ("config.json", "model.safetensors", "pytorch_model.bin")
    return folder if named and (folder / "config.json").is_file() and _weights(folder) is not None else None


def read_folder(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and configuration.

    Raises:
        UserError: for a network of another kind, or with parts that ours does not have.
    """
    config, weights = _read_json(folder / "config.json"), _weights(folder)
    kind = config.get("model_type")
    require(kind in KINDS, f"{folder} holds a {kind} of Hugging Face's; {' and '.join(KINDS)} can be imported.")
    for setting, ours in (("activation_function", "relu"), ("position_embedding_type", "sine")):
        said = config.get(setting, ours)
        require(said == ours, f"{folder / 'config.json'}: {setting} is {said!r}; only {ours!r} can be imported.")
    _check_colours(folder)
    assert weights is not None
    if weights.suffix == ".bin":
        return read_pickle(weights).tensors, config
    return read_tensors(weights, "a file of tensors")[1], config


def class_names(config: Mapping[str, Any], rows: int) -> Classes | None:
    """What the rows stand for, if somebody named them; rows called N/A stand for nothing."""
    said = config.get("id2label")
    if not isinstance(said, Mapping):
        return None
    try:
        named = {int(number): str(name) for number, name in said.items()}
    except ValueError:
        return None
    if all(name == f"LABEL_{number}" for number, name in named.items()):
        return None
    kept = [(name, number) for number, name in sorted(named.items()) if number < rows and name not in ("N/A", "")]
    seen = [name for name, _ in kept]
    names = tuple(name if seen.count(name) == 1 else f"{name} {number}" for name, number in kept)
    return Classes(names, tuple(number for _, number in kept)) if names else None


def longest_side(folder: Path) -> int | None:
    """Of the images, in pixels, if the folder tells."""
    said = _processor(folder)
    size = said.get("size")
    sides = size if isinstance(size, Mapping) else {"max_size": said.get("max_size")}
    keys = ("longest_edge", "max_size", "max_height", "max_width", "height", "width")
    found = [sides[key] for key in keys if sides.get(key)]
    return max(found) if found and all(isinstance(side, int) for side in found) else None


def _check_colours(folder: Path) -> None:
    said = _processor(folder)
    for key, ours in (("image_mean", MEAN), ("image_std", STD)):
        theirs = said.get(key, ours)
        same = isinstance(theirs, list | tuple) and [round(x, 3) for x in theirs] == list(ours)
        require(same, f"{folder / 'preprocessor_config.json'}: {key} is {theirs}; only {list(ours)} can be imported.")


def _processor(folder: Path) -> dict[str, Any]:
    file = folder / "preprocessor_config.json"
    return _read_json(file) if file.is_file() else {}


def _weights(folder: Path) -> Path | None:
    files = (folder / name for name in ("model.safetensors", "pytorch_model.bin"))
    return next((file for file in files if file.is_file()), None)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except OSError as error:
        raise UserError(f"{file} can't be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise UserError(f"{file} is no JSON: {error}.") from error
    require(isinstance(content, dict), f"{file} is no configuration: it holds no names with values.")
    return content

"""Folders of Hugging Face's transformers, with configuration and tensors, for DETR and Deformable DETR."""

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

MODEL_TYPES = ("detr", "deformable_detr")


def find_folder(source: Path) -> Path | None:
    """The folder of a `config.json` and tensors, given as the folder or one of these files; None if it is none."""
    folder = source if source.is_dir() else source.parent
    named = source.is_dir() or source.name in ("config.json", "model.safetensors", "pytorch_model.bin")
    return folder if named and (folder / "config.json").is_file() and _weights(folder) is not None else None


def read_folder(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and configuration.

    Raises:
        UserError: for another network, or with settings that ours does not have.
    """
    config, weights = _read_json(folder / "config.json"), _weights(folder)
    model_type = config.get("model_type")
    known = " and ".join(MODEL_TYPES)
    require(model_type in MODEL_TYPES, f"{folder} holds a {model_type} of Hugging Face's; {known} can be imported.")
    for setting, ours in (("activation_function", "relu"), ("position_embedding_type", "sine")):
        value = config.get(setting, ours)
        require(value == ours, f"{folder / 'config.json'}: {setting} is {value!r}; only {ours!r} can be imported.")
    _check_colours(folder)
    assert weights is not None
    if weights.suffix == ".bin":
        return read_pickle(weights).tensors, config
    return read_tensors(weights, "a file of tensors")[1], config


def class_names(config: Mapping[str, Any], rows: int) -> Classes | None:
    """The classes of the head's rows, if they have names; rows named N/A are unused."""
    labels = config.get("id2label")
    if not isinstance(labels, Mapping):
        return None
    try:
        named = {int(id_): str(name) for id_, name in labels.items()}
    except ValueError:
        return None
    if all(name == f"LABEL_{id_}" for id_, name in named.items()):
        return None
    kept = [(name, id_) for id_, name in sorted(named.items()) if id_ < rows and name not in ("N/A", "")]
    all_names = [name for name, _ in kept]
    names = tuple(name if all_names.count(name) == 1 else f"{name} {id_}" for name, id_ in kept)
    return Classes(names, tuple(id_ for _, id_ in kept)) if names else None


def longest_side(folder: Path) -> int | None:
    """The longest side of the images, in pixels, if the folder has it."""
    processor = _processor(folder)
    size = processor.get("size")
    sides = size if isinstance(size, Mapping) else {"max_size": processor.get("max_size")}
    keys = ("longest_edge", "max_size", "max_height", "max_width", "height", "width")
    found = [sides[key] for key in keys if sides.get(key)]
    return max(found) if found and all(isinstance(side, int) for side in found) else None


def _check_colours(folder: Path) -> None:
    """Raise `UserError` unless colours are normalised by ImageNet's mean and deviation."""
    processor = _processor(folder)
    for key, ours in (("image_mean", MEAN), ("image_std", STD)):
        values = processor.get(key, ours)
        same = isinstance(values, list | tuple) and [round(x, 3) for x in values] == list(ours)
        require(same, f"{folder / 'preprocessor_config.json'}: {key} is {values}; only {list(ours)} can be imported.")


def _processor(folder: Path) -> dict[str, Any]:
    """The settings of the image processor; empty if the folder has none."""
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

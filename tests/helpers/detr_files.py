"""Checkpoints of DETR and Deformable DETR as their authors and Hugging Face write them: the published names and shapes,
and small ones with these names.
"""

import json
import math
import re
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from boxwright.interop import deformable, detr
from boxwright.interop.foreign import ForeignCheckpoint
from boxwright.models.deformable import PUBLISHED as DEFORMABLE
from boxwright.models.deformable import Deformable
from boxwright.models.detr import PUBLISHED as DETR
from boxwright.models.detr import Detr
from boxwright.types import Detector
from helpers.foreign_files import GOLDEN

AUTHORS = ("detr", "deformable_plain", "deformable_box_refine", "deformable_two_stage")
HUGGING_FACE = ("hf_detr", "hf_deformable_plain", "hf_deformable_box_refine", "hf_deformable_two_stage")
FORMS = {
    "detr": DETR,
    "plain": DEFORMABLE,
    "refine": replace(DEFORMABLE, refine=True),
    "stage": replace(DEFORMABLE, refine=True, begin="proposals"),
}
SMALL = {"backbone": "resnet18", "image_size": 96, "dim": 64, "hidden": 48, "heads": 4, "encoder_layers": 2}
SMALL |= {"decoder_layers": 2, "queries": 7, "dropout": 0.0}


def published_config(which: str) -> Any:
    """The shape of a published network; images as large as in the published runs."""
    return replace(FORMS[which.split("_")[-1]], image_size=1333, class_rows=91)


def read(name: str) -> dict[str, Any]:
    """A stored object."""
    with np.load(GOLDEN / "detr_names.npz") as stored:
        return json.loads(stored[f"{name}_config"].tobytes()) if f"{name}_config" in stored else {}


def lines(name: str) -> list[list[str]]:
    """Of each tensor its name and shape, and maybe kind, fan-in, gain, and the name of its twin."""
    with np.load(GOLDEN / "detr_names.npz") as stored:
        return [line.split() for line in stored[name].tobytes().decode().split("\n")]


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published network."""
    return {line[0]: tuple(int(side) for side in line[1].split("x") if side) for line in lines(name)}


def convert(tensors: dict[str, torch.Tensor], options: dict[str, Any], file: str = "") -> ForeignCheckpoint:
    """As import-weights does it."""
    found = detr.convert(tensors, options, file) or deformable.convert(tensors, options, file)
    assert found is not None
    return found


def empty(name: str) -> dict[str, torch.Tensor]:
    """A published network's tensors, without their memory."""
    return {key: torch.zeros(()).expand(shape) for key, shape in shapes(name).items()}


def sample(which: str, **changes: Any) -> tuple[Detector, dict[str, torch.Tensor]]:
    """A small network, and its tensors under the names of its kind's published file."""
    form = FORMS[which.split("_")[-1]]
    config = replace(form, **SMALL, class_rows=91, **changes)
    torch.manual_seed(0)
    names = tuple(f"class {number}" for number in range(91))
    network = (Detr if form is DETR else Deformable)(config, names, pretrained=False).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    own = network.state_dict()
    groups: dict[str, list[torch.Tensor]] = {}
    for name, source in sources(which).items():
        if name in own:
            groups.setdefault(source, []).append(own[name])
    if changes.get("pre_norm"):
        groups |= {f"transformer.{name}": [own[name]] for name in ("encoder.norm.weight", "encoder.norm.bias")}
    tensors = {name: torch.cat(parts, int("quer" in name and len(parts) == 2)) for name, parts in groups.items()}
    assert sum(x.numel() for x in tensors.values()) == sum(
        x.numel() for name, x in own.items() if not name.endswith("num_batches_tracked")
    )
    return network, tensors


def sources(which: str) -> dict[str, str]:
    """The published file's name of each of our tensors; of a small two-stage network the last head is not the 7th."""
    return dict(convert(empty(which), read(which)).sources)


def write_folder(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any], **more: Any) -> Path:
    """A folder of Hugging Face's; `more` is the content of further JSON files."""
    folder.mkdir()
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
    for name, content in {"config": config, **more}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def drawn(name: str, gains: bool = False, **overrides: np.ndarray) -> dict[str, torch.Tensor]:
    """A published network's tensors by the formula of which stored outputs were made."""
    tensors = {}
    for key, sides, kind, fan_in, gain, twin in lines(name):
        shape = tuple(int(side) for side in sides.split("x") if side)
        x = np.float32(float(gain) if gains else 1) * _draw(key if twin == "-" else twin, shape, kind, int(fan_in))
        tensors[key] = torch.from_numpy(np.asarray(overrides.get(key, x), np.float32))
    return tensors


def _draw(name: str, shape: tuple[int, ...], kind: str, fan_in: int) -> np.ndarray:
    x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    f = np.float32
    if kind == "running_var":
        return f(0.5) + f(0.5) * np.abs(x)
    if kind == "norm_weight":
        return f(1) + f(0.1) * x
    return f(0.1) * x if kind in ("vector", "table") else x / f(math.sqrt(fan_in))


def new_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As version 5 of transformers calls them in memory."""
    attention, layers = (r"_attn\.out_proj", "_attn.o_proj"), (r"\.(fc[12])\.", r".mlp.\1.")
    rules = (("backbone.conv_encoder", "backbone"), attention, layers)
    renamed = {}
    for name, value in tensors.items():
        for pattern, new in rules:
            name = re.sub(pattern, new, name)
        renamed[name] = value
    return renamed

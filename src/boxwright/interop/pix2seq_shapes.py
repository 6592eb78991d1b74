"""The configuration of a google-research/pix2seq checkpoint, from the names and shapes of its tensors."""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from boxwright.config import UserError, require
from boxwright.interop.foreign import ForeignCheckpoint
from boxwright.interop.pix2seq_official import official_to_ours, our_name
from boxwright.interop.renaming import Shapes
from boxwright.models.backbones.pix2seq_stems import BLOCKS, PATCHES
from boxwright.models.pix2seq import OBJECT_TOKENS, Pix2Seq, Pix2SeqConfig
from boxwright.models.sequence.vocabulary import FIRST_CLASS

SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
BINS = FIRST_COORDINATE = 1000  # as published
NEEDED = "the run's config.json beside the checkpoint would tell"
LENGTH, MAX_OBJECTS = 512, 100
LARGEST = 1_000_000  # number in a configuration
_TRAINING = re.compile(r"_CHECKPOINTABLE_OBJECT_GRAPH|(global_step|save_counter|optimizer)/.*|.*/\.OPTIMIZER_SLOT/.*")


def _check_number(value: Any) -> int:
    if not isinstance(value, int) or not 0 < value <= LARGEST:
        raise ValueError(f"{value!r} should be a whole number from 1 to {LARGEST}")
    return value


def _check_side(value: Any) -> int | list[int]:
    if isinstance(value, list) and len(value) == 2:
        return [_check_number(side) for side in value]
    return _check_number(value)


def _check_bridge(value: Any) -> str:
    if value not in ("linear", "linear_p", "mlp"):
        raise ValueError(f"{value!r} should be linear, linear_p or mlp")
    return value


_SETTINGS: dict[str, Callable[[Any], Any]] = {
    "max_seq_len": _check_number,
    "coord_vocab_shift": _check_number,
    "quantization_bins": _check_number,
    "max_instances_per_image_test": _check_number,
    "image_size": _check_side,
    "dec_proj_mode": _check_bridge,
}


def is_of_network(name: str) -> bool:
    """Whether a tensor of a checkpoint belongs to the network, not to its training."""
    return not _TRAINING.fullmatch(name)


def read_settings(folder: Path) -> dict[str, Any]:
    """Settings of model and task in the `config.json` of a run; empty if there is none.

    Raises:
        UserError: if it is no JSON object, or a setting has an impossible value.
    """
    file = folder / "config.json"
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text())
        settings = {**content.get("task", {}), **content.get("model", {})}
        return {key: check(settings[key]) for key, check in _SETTINGS.items() if settings.get(key) is not None}
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"{file} is not the configuration of a pix2seq run ({error}); move it away, or fix it."
        ) from error


def convert(tensors: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> ForeignCheckpoint | None:
    """An official network, or None if the tensors are of another one.

    Args:
        tensors: by their names in the checkpoint.
        settings: of `read_settings`, for what no shape shows: the coordinate tokens, and the kind of bridge. Missing
            ones are as published.
    """
    tensors = {name.removesuffix(SUFFIX): values for name, values in tensors.items()}
    names = {name: our_name(name) for name in tensors}
    if not any((ours or "").startswith("decoder.") for ours in names.values()):
        return None
    state = official_to_ours({name: tensors[name] for name, ours in names.items() if ours})
    config, guesses = describe(state, tensors, settings)
    sources = {ours: name for name, ours in names.items() if ours}
    unknown = [name for name, ours in names.items() if ours is None]
    project = f"google-research/pix2seq ({config.backbone} at stride {config.stride})"
    ids = range(1, config.first_coordinate - FIRST_CLASS)
    return ForeignCheckpoint(project, Pix2Seq, config, state, sources, unknown, ids, 90 in ids, guesses)


def describe(
    state: Mapping[str, Tensor], tensors: Mapping[str, np.ndarray], settings: Mapping[str, Any]
) -> tuple[Pix2SeqConfig, list[str]]:
    """The configuration, and the guesses made; for missing tensors, values that fit the others."""
    shapes = Shapes(state)
    size = shapes.size
    backbone, stride = _backbone(state)
    dim, width = size("encoder.norm.weight", 0, 256), size("decoder.norm.weight", 0, 256)
    vocabulary = size("decoder.token_embedding", 0, 3000)
    length = size("decoder.position_embedding", 0, settings.get("max_seq_len", LENGTH))
    first, bins = _coordinates(vocabulary, settings)
    config = Pix2SeqConfig(
        backbone=backbone,
        stride=stride,
        grid=_grid(size("encoder.positions.embedding", 0, 0), stride, backbone, settings),
        encoder_positions="learned" if "encoder.positions.embedding" in state else "sincos",
        cls_token="encoder.cls_token_embedding" in state,
        bridge=settings.get("dec_proj_mode", _bridge(state)),
        encoder_layers=shapes.count(r"encoder\.layers\.(\d+)\.", 1),
        encoder_dim=dim,
        encoder_hidden=size("encoder.layers.0.mlp.widen.weight", 0, 4 * dim),
        encoder_heads=_heads(tensors, "model/encoder/"),
        decoder_layers=shapes.count(r"decoder\.layers\.(\d+)\.", 1),
        decoder_dim=width,
        decoder_hidden=size("decoder.layers.0.mlp.widen.weight", 0, 4 * width),
        decoder_heads=_heads(tensors, "model/decoder/"),
        decoder_positions="learned" if "decoder.position_embedding" in state else "sincos",
        shared_embedding="decoder.output_embedding" not in state,
        output_bias="decoder.output_bias" in state,
        max_objects=min(settings.get("max_instances_per_image_test", MAX_OBJECTS), length // OBJECT_TOKENS),
        length=length,
        bins=bins,
        first_coordinate=first,
        vocabulary=vocabulary,
    )
    return config, [] if settings else _guesses(config)


def _coordinates(vocabulary: int, settings: Mapping[str, Any]) -> tuple[int, int]:
    """The first coordinate token, and their number."""
    first = settings.get("coord_vocab_shift", min(FIRST_COORDINATE, (vocabulary + FIRST_CLASS) // 2))
    bins = settings.get("quantization_bins", min(BINS, vocabulary - first))
    fits = 0 < first < first + bins <= vocabulary
    require(fits, f"this checkpoint has {vocabulary} words, too few for {bins} coordinates from word {first} on.")
    return first, bins


def _guesses(c: Pix2SeqConfig) -> list[str]:
    """The guesses where no file has settings, and the network is not one of the published."""
    guesses = []
    if c.vocabulary < FIRST_COORDINATE + BINS:
        guesses.append(f"coordinates are guessed to begin at word {c.first_coordinate} of {c.vocabulary}; {NEEDED}")
    if c.bridge == "linear" and c.encoder_positions == "sincos":
        guesses.append(f"the bridge is guessed to add no positions; {NEEDED}")
    return guesses


def _backbone(state: Mapping[str, Tensor]) -> tuple[str, int]:
    """Name and stride of the backbone."""
    patches = state.get("backbone.projection.weight")
    if patches is not None:
        return PATCHES, patches.shape[-1]
    found = {tuple(map(int, name.split(".")[2:4])) for name in state if name.startswith("backbone.stages.")}
    blocks = tuple(sum(stage == number for stage, _ in found) for number in range(4))
    depth = next((depth for depth, of in BLOCKS.items() if of[2] == blocks[2] and of[1] == blocks[1]), 50)
    scale = len(state["backbone.conv1.weight"]) / 64 if "backbone.conv1.weight" in state else 1
    return f"pix2seq_resnet{depth}" + (f"x{scale:g}" if scale != 1 else ""), 32 if blocks[3] else 16


def _bridge(state: Mapping[str, Tensor]) -> str:
    if any(name.startswith("bridge.mlp.") for name in state):
        return "mlp"
    return "linear_p" if "bridge.positions.embedding" in state else "linear"


def _grid(cells: int, stride: int, backbone: str, settings: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rows and columns of learned position embeddings: those of the configured image, else nearly a square."""
    if not cells:
        return None
    sides = settings.get("image_size")
    if isinstance(sides, list) and len(sides) == 2:
        grid = tuple(side // stride if backbone == PATCHES else -(-side // stride) for side in sides)
        if math.prod(grid) == cells:
            return grid  # type: ignore[return-value]
    rows = next(rows for rows in range(math.isqrt(cells), 0, -1) if cells % rows == 0)
    return rows, cells // rows


def _heads(tensors: Mapping[str, np.ndarray], prefix: str) -> int:
    """Number of attention heads: the middle axis of a query kernel, which is not flattened in the file."""
    kernels = [v for name, v in tensors.items() if name.startswith(prefix) and name.endswith("_query_dense/kernel")]
    return next((values.shape[1] for values in kernels if values.ndim == 3), 8)

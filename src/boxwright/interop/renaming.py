"""Shared by the readers of DETR and Deformable DETR: renaming of tensors, and settings that no tensor shows."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from boxwright.config import UserError, require
from boxwright.interop.resnets import COUNTER, Rules, resnet_of

_FUSED = re.compile(r"(.*attention)\.in_proj_(weight|bias)")  # one tensor for queries, keys and values


class Renamed(NamedTuple):
    """Tensors under our names, the name of each in the file, and names in the file that contradict others."""

    state: dict[str, Tensor]
    sources: dict[str, str]
    conflicts: list[str]


def rename(tensors: Mapping[str, Tensor], rules: Rules) -> Renamed:
    """Rename all tensors but the counters of batch norms; a tensor under several names must be equal under all."""
    renamed = Renamed({}, {}, [])
    for source, value in tensors.items():
        if COUNTER.fullmatch(source):
            continue
        names = _our_names(source, rules)
        parts = value.tensor_split(len(names)) if len(names) > 1 else (value,)
        for name, part in zip(names, parts, strict=True):
            if name not in renamed.state:
                renamed.state[name], renamed.sources[name] = part, source
            elif not part.equal(renamed.state[name]):
                renamed.conflicts.append(source)
    return renamed


def _our_names(name: str, rules: Rules) -> list[str]:
    """Our name of a tensor; three for one that holds queries, keys and values."""
    for pattern, ours in rules:
        name = re.sub(pattern, ours, name)
    fused = _FUSED.fullmatch(name)
    return [f"{fused[1]}.{part}.{fused[2]}" for part in ("query", "key", "value")] if fused else [name]


class Shapes:
    """Sizes of a network by its tensors, with a default for missing ones, which `compare` reports later."""

    def __init__(self, state: Mapping[str, Tensor]):
        self.state = state

    def size(self, name: str, axis: int, default: int) -> int:
        """Length of an axis of a tensor."""
        value = self.state.get(name)
        return value.shape[axis] if value is not None and value.ndim > axis else default

    def count(self, pattern: str, default: int) -> int:
        """Number of layers whose names begin with the pattern, which has the layer's number as its group.

        Raises:
            UserError: if a number is missing.
        """
        found = {int(match[1]) for name in self.state if (match := re.match(pattern, name))}
        hole = next((number for number in range(len(found)) if number not in found), None)
        if hole is not None:
            what = pattern.replace(r"\.", ".").removesuffix("(\\d+).")
            raise UserError(f"this checkpoint has {what}{max(found)}, but no {what}{hole}: layers are missing.")
        return len(found) or default


def first_setting(options: Mapping[str, Any], *names: str) -> Any:
    """The first of these options that is set (names differ between the authors and Hugging Face); else None."""
    return next((options[name] for name in names if options.get(name) is not None), None)


def is_dilated(options: Mapping[str, Any], file: str) -> tuple[bool, list[str]]:
    """Whether the last stage of the backbone is dilated (DC5), which no tensor shows; and the guesses made."""
    dilation = first_setting(options, "dilation")
    inner = [first_setting(options, name) for name in ("backbone_kwargs", "backbone_config")]
    if any(isinstance(one, Mapping) and one.get("output_stride") == 16 for one in inner):
        return True, []
    if dilation is not None or "model_type" in options:
        return bool(dilation), []
    dilated = "dc5" in file.lower()
    how = "dilated (DC5), by the file's name" if dilated else "not dilated, as its name has no `dc5`"
    return dilated, [f"the last stage of the backbone is guessed to be {how}"]


def heads_of(options: Mapping[str, Any]) -> tuple[int, int, list[str]]:
    """Attention heads of the encoder, of the decoder (0 for the same), and the guesses made.

    Raises:
        UserError: if the options have an impossible number of heads.
    """
    heads = first_setting(options, "nheads", "encoder_attention_heads")
    decoder_heads = first_setting(options, "nheads", "decoder_attention_heads")
    for count in (heads, decoder_heads):
        fits = count is None or (isinstance(count, int) and count > 0)
        require(fits, f"the options of this checkpoint say that attention has {count!r} heads; it must have some.")
    if heads is None:
        return 8, 0, ["attention is guessed to have 8 heads, as in all published files"]
    return heads, 0 if decoder_heads in (None, heads) else decoder_heads, []


def shared_settings(
    state: Mapping[str, Tensor], options: Mapping[str, Any], file: str, published: Any
) -> tuple[dict[str, Any], list[str]]:
    """The settings of backbone, encoder and decoder that both detectors have, by name; and the guesses made.

    Args:
        state: tensors under our names.
        options, file: see the readers' `convert`.
        published: the configuration with the defaults.

    Raises:
        UserError: for a backbone that is no ResNet, missing layers, or an impossible number of heads.
    """
    shapes = Shapes(state)
    dilated, guesses = is_dilated(options, file)
    heads, decoder_heads, more = heads_of(options)
    hidden = shapes.size("encoder.layers.0.mlp.0.weight", 0, published.hidden)
    decoder_hidden = shapes.size("decoder.layers.0.mlp.0.weight", 0, hidden)
    dropout = first_setting(options, "dropout")
    settings = {
        "backbone": resnet_of(state),
        "dilated": dilated,
        "hidden": hidden,
        "heads": heads,
        "decoder_hidden": decoder_hidden if decoder_hidden != hidden else 0,
        "decoder_heads": decoder_heads,
        "encoder_layers": shapes.count(r"encoder\.layers\.(\d+)\.", published.encoder_layers),
        "decoder_layers": shapes.count(r"decoder\.layers\.(\d+)\.", published.decoder_layers),
        "dropout": published.dropout if dropout is None else float(dropout),
    }
    return settings, guesses + more

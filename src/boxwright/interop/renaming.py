"""What the readers of DETR's kind share: tensors under our names, and what is told of a network besides its tensors."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from boxwright.config import UserError, require
from boxwright.interop.resnets import COUNTER, Rules, resnet_of

_FUSED = re.compile(r"(.*attention)\.in_proj_(weight|bias)")  # queries, keys and values in one


class Renamed(NamedTuple):
    """Tensors under our names, what each was called, and names of tensors that contradict others of the same name."""

    state: dict[str, Tensor]
    sources: dict[str, str]
    strange: list[str]


def rename(tensors: Mapping[str, Tensor], rules: Rules) -> Renamed:
    """All tensors but counters; where a file has one under several names, these must agree."""
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
                renamed.strange.append(source)
    return renamed


def _our_names(name: str, rules: Rules) -> list[str]:
    for pattern, ours in rules:
        name = re.sub(pattern, ours, name)
    fused = _FUSED.fullmatch(name)
    return [f"{fused[1]}.{part}.{fused[2]}" for part in ("query", "key", "value")] if fused else [name]


class Shapes:
    """Sizes of a network by its tensors, with a fallback where one is missing, which will be told later."""

    def __init__(self, state: Mapping[str, Tensor]):
        self.state = state

    def size(self, name: str, axis: int, otherwise: int) -> int:
        """Length of a side of a tensor."""
        value = self.state.get(name)
        return value.shape[axis] if value is not None and value.ndim > axis else otherwise

    def count(self, pattern: str, otherwise: int) -> int:
        """How many layers there are whose names begin with the pattern, which has the number as its group.

        Raises:
            UserError: if a number is left out.
        """
        found = {int(match[1]) for name in self.state if (match := re.match(pattern, name))}
        hole = next((number for number in range(len(found)) if number not in found), None)
        if hole is not None:
            what = pattern.replace(r"\.", ".").removesuffix("(\\d+).")
            raise UserError(f"this checkpoint has {what}{max(found)}, but no {what}{hole}: layers are missing.")
        return len(found) or otherwise


def told(options: Mapping[str, Any], *names: str) -> Any:
    """The first of these settings that is told, by the authors' name or Hugging Face's; else None."""
    return next((options[name] for name in names if options.get(name) is not None), None)


def is_dilated(options: Mapping[str, Any], file: str) -> tuple[bool, list[str]]:
    """Whether the last stage of the backbone keeps its stride (DC5), which shows in no tensor; and what is guessed."""
    said = told(options, "dilation")
    inner = [told(options, name) for name in ("backbone_kwargs", "backbone_config")]
    if any(isinstance(one, Mapping) and one.get("output_stride") == 16 for one in inner):
        return True, []
    if said is not None or "model_type" in options:
        return bool(said), []
    dilated = "dc5" in file.lower()
    how = "dilated (DC5), by the file's name" if dilated else "not dilated, as its name has no `dc5`"
    return dilated, [f"the last stage of the backbone is guessed to be {how}"]


def heads_of(options: Mapping[str, Any]) -> tuple[int, int, list[str]]:
    """Heads of the encoder and of the decoder, 0 for the same; and what is guessed.

    Raises:
        UserError: if the options tell a number that is none of heads.
    """
    heads = told(options, "nheads", "encoder_attention_heads")
    among = told(options, "nheads", "decoder_attention_heads")
    for said in (heads, among):
        fits = said is None or (isinstance(said, int) and said > 0)
        require(fits, f"the options of this checkpoint say that attention has {said!r} heads; it must have some.")
    if heads is None:
        return 8, 0, ["attention is guessed to have 8 heads, as in all published files"]
    return heads, among if among is not None and among != heads else 0, []


def towers(
    state: Mapping[str, Tensor], options: Mapping[str, Any], file: str, published: Any
) -> tuple[dict[str, Any], list[str]]:
    """The settings of backbone, encoder and decoder that both detectors have, by name; and what of them is a guess.

    Args:
        state: tensors under our names.
        options, file: as of `is_dilated`.
        published: settings that hold where nothing is told.

    Raises:
        UserError: for a backbone that is no ResNet, layers that are missing, or heads that cannot be.
    """
    shapes = Shapes(state)
    (dilated, notes), (heads, among, more) = is_dilated(options, file), heads_of(options)
    hidden = shapes.size("encoder.layers.0.mlp.0.weight", 0, published.hidden)
    wider = shapes.size("decoder.layers.0.mlp.0.weight", 0, hidden)
    rate = told(options, "dropout")
    settings = {
        "backbone": resnet_of(state),
        "dilated": dilated,
        "hidden": hidden,
        "heads": heads,
        "decoder_hidden": wider if wider != hidden else 0,
        "decoder_heads": among,
        "encoder_layers": shapes.count(r"encoder\.layers\.(\d+)\.", published.encoder_layers),
        "decoder_layers": shapes.count(r"decoder\.layers\.(\d+)\.", published.decoder_layers),
        "dropout": published.dropout if rate is None else float(rate),
    }
    return settings, notes + more

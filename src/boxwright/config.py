"""Settings of optimizer and augmentation as typed dataclasses, and the error whose message is written for the user.

A field that is ``None`` on the command line means "what the detector's recipe says"
(`boxwright.training.recipes.recipe`); `fill_in` replaces the recipe's values by those that the user gave. A new setting
of the optimizer is a field of `Optim`, with its range in `boxwright.training.optim` and its value in each recipe; the
other settings of a run are in `boxwright.training.config`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Adapt = Literal["full", "head", "lora"]
Rule = Literal["torch", "keras", "keras-kernels"]
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


class UserError(ValueError):
    """A mistake in the input: the message says what, where and how to fix it. Shown without a traceback."""


@dataclass(frozen=True)
class Augment:
    """Random augmentation of a whole batch, on the device.

    Attributes:
        scale: range of the large-scale jitter, relative to the image fitted into the canvas. Under 1 the image
            shrinks, over 1 it grows and is cropped.
        flip: probability of a horizontal flip, from 0 to 1.
        colour: strength of brightness, contrast and saturation jitter; 0.4 draws factors from 0.6 to 1.4.
        min_visible: a box is dropped if less than this fraction of its area is inside the crop, from 0 to 1.
        views: how many differently augmented copies of each image a batch contains.
        geometry: `free`, or `pix2seq` as in the official code: crops lie on the diagonal (one draw for both
            offsets), sizes are rounded down to whole pixels, and a shrunk image is not antialiased.
        mosaic: probability that an image becomes a 2 x 2 grid of itself and three others of the batch, from 0 to 1.
            `scale` is then relative to the grid fitted into the canvas.
        mixup: probability that an image is blended with another of the batch, half and half; objects of both count.
        copy_blend: probability that an image gets up to three objects of others of the batch, where they hide little.
        mixed_until: fraction of the run after which mosaic, mixup and copy_blend are off, from 0 to 1.
    """

    scale: tuple[float, float] | None = None
    flip: float | None = None
    colour: float | None = None
    min_visible: float | None = None
    views: int | None = None
    geometry: Literal["free", "pix2seq"] | None = None
    mosaic: float | None = None
    mixup: float | None = None
    copy_blend: float | None = None
    mixed_until: float | None = None


MIXING = ("mosaic", "mixup", "copy_blend", "mixed_until")
UNMIXED = Augment(mosaic=0.0, mixup=0.0, copy_blend=0.0, mixed_until=0.0)


def without_unused(augment: dict[str, Any]) -> dict[str, Any]:
    """The fields of an `Augment` without those of mixing if nothing is mixed: as they were before it could be.

    So runs and comparisons of earlier versions have the same settings as new ones, and can be resumed.
    """
    mixed = any(augment.get(name) for name in MIXING[:3])
    return {name: value for name, value in augment.items() if mixed or name not in MIXING}


@dataclass(frozen=True)
class Optim:
    """The optimizer, its learning-rate schedule, weight averaging and early stopping.

    Attributes:
        lr: peak learning rate of AdamW for everything but the backbone.
        backbone_factor: the backbone's learning rate, as a fraction of `lr`.
        frozen: fraction of the run, from its start, in which the backbone is frozen.
        weight_decay: applied to matrices and kernels only, not to biases, norms and embeddings.
        rule: variant of AdamW: `torch`, or one of the two that trained the official Pix2Seq: `keras` decays every
            weight, `keras-kernels` (until May 2023) decays as `torch` does; both add epsilon before the bias of the
            second moment is corrected.
        beta2: decay of the second moment.
        schedule: shape of the decay to 1 % of the peak, `cosine` or `linear`; with `linear`, the first step has rate 0.
        warmup: length of the linear warm-up, as a fraction of the run.
        hold: fraction of the run after which the decay begins; 1 never decays.
        clip: largest gradient norm; 0 does not clip.
        accumulate: number of batches whose gradients are added up for one step, which is that of one batch of so many
            times the size; each batch costs another forward pass then.
        ema: decay of the exponential moving average of the weights that is validated and saved; 0 turns it off.
        patience: stop after this many epochs without a better AP; 0 turns early stopping off. It may end a run before
            the learning rate has descended, which brings the last gain.
    """

    lr: float | None = None
    backbone_factor: float | None = None
    frozen: float | None = None
    weight_decay: float | None = None
    rule: Rule | None = None
    beta2: float | None = None
    schedule: Literal["cosine", "linear"] | None = None
    warmup: float | None = None
    hold: float | None = None
    clip: float | None = None
    accumulate: int | None = None
    ema: float | None = None
    patience: int | None = None


T = TypeVar("T")


def fill_in(given: T, default: T) -> T:
    """The dataclass `default` with the fields of `given` that are not None."""
    changes = {f.name: getattr(given, f.name) for f in fields(given)}  # type: ignore[arg-type]
    return replace(default, **{k: v for k, v in changes.items() if v is not None})  # type: ignore[type-var]


def from_mapping(name: str, given: Any, kind: type[T]) -> T:
    """The dataclass of a group of settings, from one of it or from a mapping of its fields.

    Raises:
        UserError: for anything else, or a field that it does not have.
    """
    if isinstance(given, kind):
        return given
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    if not isinstance(given, Mapping):
        raise UserError(f"{name} is {kind.__name__}(...) or a dictionary, not {given!r}.")
    for key in given:
        require(key in known, f"{name} has no {key!r}{nearest(str(key), known)}; it has {', '.join(known)}.")
    return kind(**given)


def check_types(settings: Any, prefix: str = "") -> None:
    """Raise `UserError` for a field of a dataclass whose value has another type than it says.

    Args:
        settings: the dataclass; of fields that are dataclasses, their fields are checked.
        prefix: goes before the name of a field, as in ``optim.``.
    """
    for name, hint in get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        if is_dataclass(value):
            check_types(value, f"{name}.")
            continue
        parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        kinds = [kind for kind in parts if kind in _KINDS]
        other = len(kinds) < len(parts)  # a choice, or several values, which are checked elsewhere
        fits = any(_has_type(value, kind) for kind in kinds) or (other and isinstance(value, str | tuple | list))
        choices = [str(choice) for part in parts if get_origin(part) is Literal for choice in get_args(part)]
        words = " or ".join([*([", ".join(choices)] if choices else []), *(_KINDS[kind] for kind in kinds)]) or "a text"
        require(fits, f"{option(prefix + name)} must be {words}, not {value!r}.")


_KINDS: dict[Any, str] = {
    int: "a whole number", float: "a number", bool: "True or False", str: "a text", Path: "a path", NoneType: "None",
}  # fmt: skip


def _has_type(value: Any, kind: Any) -> bool:
    if kind in (int, float, bool):  # exactly, as settings are stored as text
        return type(value) in ((int, float) if kind is float else (kind,))
    return isinstance(value, PathLike if kind is Path else kind)


def option(name: str) -> str:
    """A setting as an option of the command line: ``image_size`` as ``--image-size``."""
    return f"--{name.replace('_', '-')}"


_LONGEST = 200  # characters of a name that may be misspelt


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name, as ``" (did you mean 'epochs'?)"``, or an empty string."""
    if len(word) > _LONGEST:  # comparing takes time
        return ""
    match = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {match[0]!r}?)" if match else ""


def parse_bytes(option: str, text: str) -> int:
    """A number of bytes from a text such as 256MB, 1.5 GB or 1000000.

    Raises:
        UserError: it is no such text.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)b?\s*", text.lower())
    require(match, f"{option} must be a number of bytes such as 256MB or 1GB, not {text!r:.40}.")
    assert match
    return int(float(match[1]) * _UNITS[match[2]])


def require(condition: Any, message: str) -> None:
    """Raise `UserError(message)` unless the condition holds."""
    if not condition:
        raise UserError(message)

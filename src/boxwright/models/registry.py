"""The detectors by name, and their sizes. A new one is one line in `DETECTORS`."""

import math
from collections.abc import Iterable
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from boxwright.config import UserError, nearest, require
from boxwright.models.deformable import SIZES as DEFORMABLE_SIZES
from boxwright.models.deformable import Deformable, DeformableConfig
from boxwright.models.dense import SIZES as DENSE_SIZES
from boxwright.models.dense import Dense, DenseConfig
from boxwright.models.detr import SIZES as DETR_SIZES
from boxwright.models.detr import Detr, DetrConfig
from boxwright.models.patchseq import SIZES as PATCHSEQ_SIZES
from boxwright.models.patchseq import PatchSeq, PatchSeqConfig
from boxwright.models.pix2seq import SIZES as PIX2SEQ_SIZES
from boxwright.models.pix2seq import Pix2Seq, Pix2SeqConfig
from boxwright.models.replication import Replication, ReplicationConfig
from boxwright.types import Detector

LARGEST_SIDE, LARGEST_NUMBER = 2**14, 2**20  # in stored configurations: of a canvas, in pixels, and of anything else


class Entry(NamedTuple):
    """A detector of the library.

    Attributes:
        network: the class, a `boxwright.types.Detector` built from (config, names, pretrained).
        config: the dataclass of its architecture.
        sizes: configurations that can be trained from scratch; empty where weights are only imported.
    """

    network: type[Any]
    config: type[Any]
    sizes: dict[str, Any]


DETECTORS = {
    "dense": Entry(Dense, DenseConfig, DENSE_SIZES),
    "pix2seq": Entry(Pix2Seq, Pix2SeqConfig, PIX2SEQ_SIZES),
    "patchseq": Entry(PatchSeq, PatchSeqConfig, PATCHSEQ_SIZES),
    "detr": Entry(Detr, DetrConfig, DETR_SIZES),
    "deformable": Entry(Deformable, DeformableConfig, DEFORMABLE_SIZES),
    "replication": Entry(Replication, ReplicationConfig, {}),
}
if TYPE_CHECKING:
    DetectorName = Size = str
else:  # what the command line offers
    DetectorName = Literal[*(name for name, entry in DETECTORS.items() if entry.sizes)]
    Size = Literal[*dict.fromkeys(size for entry in DETECTORS.values() for size in entry.sizes)]


def check_image_size(detector: Detector) -> None:
    """Raise `UserError` unless the canvas is made of whole patches, where the backbone has any."""
    side, patch = detector.image_size, detector.backbone.patch
    low = side // patch * patch
    sizes = f"{low} or {low + patch}" if low else str(patch)
    require(side == low, f"--image-size {side} is not made of whole patches of {patch} pixels; take {sizes}.")


def build(
    model: DetectorName,
    size: Size,
    names: tuple[str, ...],
    *,
    image_size: int | None = None,
    backbone: str | None = None,
    pretrained: bool = True,
) -> Detector:
    """A detector to train: `size` decides everything that is not given."""
    check_choice("model", model, DETECTORS)
    network, _, sizes = DETECTORS[model]
    check_choice("size", size, sizes)
    given = {"image_size": image_size, "backbone": backbone}
    config = replace(sizes[size], **{key: value for key, value in given.items() if value is not None})
    return network(config, names, pretrained)


def check_choice(what: str, choice: str, known: Iterable[str]) -> None:
    """Raise `UserError` unless `choice` is among those known."""
    require(
        choice in known, f"{what} can't be {choice!r}{nearest(choice, known)}, it must be one of: {', '.join(known)}."
    )


def configure(model: str, stored: dict[str, Any]) -> Any:
    """The configuration of a detector, from its name and the fields that a checkpoint stores."""
    if model not in DETECTORS:
        raise UserError(f"this version knows the detectors {', '.join(DETECTORS)}, not {model!r}; update boxwright.")
    _check_numbers(stored)
    fields_of = {key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()}
    return DETECTORS[model].config(**fields_of)


def _check_numbers(stored: dict[str, Any]) -> None:
    """Raise `UserError` for numbers that no detector has."""
    for key, value in stored.items():
        for number in value if isinstance(value, list) else [value]:
            most = LARGEST_SIDE if key == "image_size" else LARGEST_NUMBER
            if key == "seed" or (key == "end_bias" and number == -math.inf):  # which never ends a sequence
                continue
            absurd = isinstance(number, int | float) and not -most <= number <= most
            require(not absurd, f"no detector has the {key} that a header asks for: {str(number)[:60]}.")


def rebuild(model: str, stored: dict[str, Any], names: tuple[str, ...], pretrained: bool = False) -> Detector:
    """The detector that a checkpoint describes, without its weights; with those of its backbone if `pretrained`."""
    config = configure(model, stored)
    return DETECTORS[model].network(config, names, pretrained=pretrained)


def is_size(model: str, config: Any, size: Size) -> bool:
    """Whether a configuration is that of a size, in all that differs between sizes but the image size."""
    _, config_class, sizes = DETECTORS[model]
    check_choice("size", size, sizes)
    varied = {f.name for f in fields(config_class) if len({getattr(other, f.name) for other in sizes.values()}) > 1}
    return all(getattr(config, name) == getattr(sizes[size], name) for name in varied - {"image_size"})


def name_of(detector: Detector) -> str:
    """The name of a detector in `DETECTORS`, or else of its class."""
    names = (name for name, (network, _, _) in DETECTORS.items() if type(detector) is network)
    return next(names, type(detector).__name__)

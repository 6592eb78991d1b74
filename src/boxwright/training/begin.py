"""What a run begins with: its data, and a detector, new or from a checkpoint, of which a part may be frozen."""

from collections.abc import Sequence
from pathlib import Path

from boxwright.checkpoints.detector_file import is_adapter
from boxwright.checkpoints.locate import find_weights
from boxwright.checkpoints.lora import adapt
from boxwright.classes import enumerate_classes
from boxwright.config import require
from boxwright.data.read import merge_val, name_splits, read, train_and_val
from boxwright.data.records import Record
from boxwright.models import registry
from boxwright.training.config import RunConfig
from boxwright.types import Detector


def read_data(config: RunConfig) -> tuple[tuple[str, ...], Sequence[Record], Sequence[Record]]:
    """Classes, training images, validation images."""
    dataset = name_splits(read(config.data), config.train_split, config.val_split)
    if config.val_data is not None:
        dataset = merge_val(dataset, read(config.val_data))
    return dataset.names, *train_and_val(dataset, config.val, config.seed)


def make_detector(config: RunConfig, source: Detector | None, names: tuple[str, ...]) -> tuple[Detector, str]:
    """The detector to train, and a text that says where it comes from.

    Args:
        config: the settings, as `resolve` returns them.
        source: the detector of `config.weights`; None without.
        names: the classes.

    Raises:
        UserError: for an image size that does not suit its backbone, or if it can't be frozen or adapted as asked.
    """
    if source is None:
        assert config.model is not None
        assert config.size is not None
        detector = registry.build(
            config.model,
            config.size,
            names,
            image_size=config.image_size,
            backbone=config.backbone,
            pretrained=config.pretrained,
        )
        origin = detector.backbone.origin
        origin = f"{config.model} {config.size}" + (f" from {origin}" if origin else "")
    else:
        detector = source.with_classes(names, config.image_size, config.pretrained)
        origin = f"{registry.name_of(source)} of {config.weights} ({_known_classes(source, names)})"
    registry.check_image_size(detector)
    return detector, origin + _freeze(detector, source, config)


def _known_classes(source: Detector, names: tuple[str, ...]) -> str:
    new = [name for name in names if name not in source.names]
    return f"it knows {len(names) - len(new)} of the {len(names)} classes" + (
        f", not {enumerate_classes(new)}" if new else ""
    )


def _freeze(detector: Detector, source: Detector | None, config: RunConfig) -> str:
    """Freeze what `config.adapt` says, with adapters beside it for `lora`; returns a text that says so."""
    if config.adapt == "full":
        return ""
    known = source is not None or (config.pretrained and detector.backbone_parameters())
    random = f"--adapt {config.adapt} adapts what is known, and this backbone begins at random"
    require(known, f"{random}; give --weights.")
    rank = config.rank if config.adapt == "lora" else None
    if source is None:
        adapt(detector, rank, None, detector.config.backbone)
    else:
        weights = str(config.weights)
        fix = f"merge it first: boxwright.merge({weights!r}, 'merged.safetensors')"
        require(not is_adapter(weights), f"{weights} is an adapter and can't be the base of another; {fix}.")
        file = find_weights(Path(weights))
        adapt(detector, rank, source, weights, file.parent.resolve() / file.name)
    return f", adapters of rank {rank}" if rank else ", the backbone frozen"

"""Decide the settings of a run that were left open, by its weights, its teacher and the recipe of its detector.

First all but the epochs (`resolve`), which needs no data, so that a mistake is found at once; then, when the images are
known, the epochs (`decide_epochs`).
"""

from dataclasses import replace
from pathlib import Path

from boxwright.checkpoints.detector_file import read_config
from boxwright.config import check_types, fill_in, option, require
from boxwright.data.loader import check as check_augment
from boxwright.data.mixing import is_mixing
from boxwright.models import registry
from boxwright.models.registry import DetectorName
from boxwright.training.config import RunConfig, epochs_of_run
from boxwright.training.optim import check as check_optim
from boxwright.training.recipes import MIXED, Recipe, recipe

LEAST = {"epochs": 1, "batch_size": 1, "image_size": 64, "devices": 1, "nodes": 1, "rank": 1}


def resolve(config: RunConfig) -> RunConfig:
    """The same settings, all decided but the epochs. Only the headers of the files of weights and teacher are read.

    Raises:
        UserError: for settings outside their range, or that differ from those of the weights.
    """
    check_types(config)
    _check_numbers(config)
    if config.weights is None:
        config = replace(config, model=config.model or _default_model(config), size=config.size or "nano")
    chosen = _recipe(config)
    augment = fill_in(config.augment, chosen.augment)
    config = replace(
        config,
        batch_size=config.batch_size or chosen.batch_size,
        augment=fill_in(augment, MIXED) if is_mixing(augment) else augment,
        optim=fill_in(config.optim, chosen.optim),
    )
    check_augment(config.augment)
    check_optim(config.optim)
    return config


def decide_epochs(config: RunConfig, images: int, resume: bool = False) -> RunConfig:
    """The same settings with the epochs, where these are left open.

    Args:
        config: the settings, as `resolve` returns them.
        images: number of training images.
        resume: keep the epochs with which the run in the folder was begun, whatever the recipe says today.
    """
    begun = epochs_of_run(config.out) if resume else None
    return replace(config, epochs=config.epochs or begun or _recipe(config).epochs_for(images))


def _check_numbers(config: RunConfig) -> None:
    for name, least in LEAST.items():
        value = getattr(config, name)
        require(value is None or value >= least, f"{option(name)} must be at least {least}, not {value}.")
    require(0 <= config.seed < 2**63, f"--seed must be at least 0 and under 2^63, not {config.seed}.")


def _default_model(config: RunConfig) -> DetectorName:
    """The teacher's model, if it can be trained from scratch, else `dense`."""
    if config.teacher is None:
        return "dense"
    model, _ = read_config(config.teacher)
    return model if registry.DETECTORS[model][2] else "dense"  # type: ignore[return-value]


def _recipe(config: RunConfig) -> Recipe:
    """The recipe of the detector that is trained."""
    if config.weights is not None:
        return _recipe_of_weights(config.weights, config)
    assert config.model is not None
    return recipe(config.model, config.size or "nano", config.backbone)


def _recipe_of_weights(weights: Path | str, config: RunConfig) -> Recipe:
    """The recipe of the detector in a checkpoint, which brings model, size and backbone."""
    model, shape = read_config(weights)
    require(config.model in (None, model), f"{weights} is a {model}, not a {config.model}; leave --model out.")
    other = f"the backbone of {weights} is {shape.backbone}, not {config.backbone}"
    require(config.backbone in (None, shape.backbone), f"{other}; leave --backbone out.")
    fits = config.size is None or registry.is_size(model, shape, config.size)
    require(fits, f"{weights} is not of size {config.size}; leave --size out.")
    return recipe(model, config=shape)

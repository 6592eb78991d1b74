"""The settings of a run as one dataclass, and config.yaml, which stores them.

Those of the optimizer and the augmentation are dataclasses of `boxwright.config`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from boxwright.config import MIXING, UNMIXED, Adapt, Augment, Optim, fill_in, from_mapping, option, without_unused
from boxwright.files import write_whole
from boxwright.models.registry import DetectorName, Size, check_choice
from boxwright.training.fabric import Precision

FILE = "config.yaml"
RecipeName = Literal["dense-nano-bccd", "pix2seq-resnet50-coco"]  # those in `recipe_files`
# what a resumed run may change: it goes on with them
ADJUSTABLE = ("epochs", "optim.lr", "optim.clip", "optim.patience")
FRESH = ("data", "out", "device", "devices", "nodes")  # of a resumed run: as given, not as it was begun
MACHINE = ("data", "val_data", "teacher", "out", "device", "devices", "nodes", "precision", "cache")


@dataclass(frozen=True)
class RunConfig:
    """The arguments of `boxwright.train` that a run keeps, with their defaults; `train` explains each.

    None means left open: `resolve` decides batch size, each field of `augment` and `optim` and, unless `weights` bring
    them, model and size; `decide_epochs` decides the epochs.
    """

    data: Path | str
    model: DetectorName | None = None
    size: Size | None = None
    out: Path = Path("runs/train")
    val_data: Path | str | None = None
    val: float = 0.2
    train_split: str | None = None
    val_split: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    image_size: int | None = None
    backbone: str | None = None
    weights: Path | str | None = None
    pretrained: bool = True
    adapt: Adapt = "full"
    rank: int = 8
    teacher: Path | str | None = None
    augment: Augment = field(default_factory=Augment)
    optim: Optim = field(default_factory=Optim)
    seed: int = 0
    device: str = "auto"
    precision: Precision = "auto"
    devices: int = 1
    nodes: int = 1
    cache: Literal["auto", "pixels", "jpeg", "grow"] = "auto"

    def as_dict(self) -> dict[str, Any]:
        """All settings, as config.yaml has them; those of mixing images only where they are decided."""
        settings = {name: _plain(value) for name, value in asdict(self).items()}
        for name in MIXING:
            if settings["augment"][name] is None:
                del settings["augment"][name]
        return settings

    def fixed(self) -> dict[str, Any]:
        """The settings that may not change when a run is resumed: all but those of machine and files."""
        return _comparable({name: value for name, value in self.as_dict().items() if name not in MACHINE})

    def write(self) -> None:
        """Write config.yaml into the run's folder."""
        text = yaml.safe_dump(self.as_dict(), sort_keys=False)
        write_whole(self.out / FILE, lambda temporary: temporary.write_text(text))


def epochs_of_run(folder: Path) -> int | None:
    """The epochs of the run in a folder, or None if its config.yaml does not say."""
    epochs = stored_settings(folder).get("epochs")
    return epochs if isinstance(epochs, int) and epochs >= 1 else None


def as_begun(config: RunConfig) -> RunConfig:
    """The settings to resume a run with: those left at their defaults are as the run was begun.

    A run of an earlier version, which could not mix images, goes on without.

    Args:
        config: as given. config.yaml in its folder has the settings with which the run was begun.
    """
    stored = stored_settings(config.out)
    augment = stored.get("augment")
    if isinstance(augment, dict) and "mosaic" not in augment:
        config = replace(config, augment=fill_in(config.augment, UNMIXED))
    return fill_in_settings(config, {name: value for name, value in stored.items() if name not in FRESH})


def recipe_settings(name: RecipeName) -> dict[str, Any]:
    """The settings of a recipe that comes with the package.

    Raises:
        UserError: there is none of this name.
    """
    check_choice("recipe", name, get_args(RecipeName))
    file = Path(__file__).parent / "recipe_files" / f"{name}.yaml"
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def fill_in_settings(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """The settings, and where they are left at their defaults, those of a file.

    Args:
        config: as given.
        settings: as a YAML file has them; unknown ones are left out.
    """
    changes: dict[str, Any] = {}
    for default in fields(RunConfig(config.data)):
        name, value = default.name, settings.get(default.name)
        if name in ("augment", "optim"):
            kind = Augment if name == "augment" else Optim
            changes[name] = fill_in(getattr(config, name), from_mapping(name, _with_tuples(value or {}), kind))
        elif name in settings and name != "data" and getattr(config, name) == default.default:
            changes[name] = value
    return replace(config, **changes)


def _with_tuples(settings: Any) -> Any:
    """The settings of a group with tuples where YAML has lists."""
    if not isinstance(settings, dict):
        return settings
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}


def resume_error(config: RunConfig, adapted: bool) -> str:
    """An error message: why a run can't be resumed with these settings, and how to fix it.

    Args:
        config: the settings; config.yaml in its folder has those with which the run was begun.
        adapted: whether it trains adapters.
    """
    stored = stored_settings(config.out)
    if not stored:
        return f"{config.out} was begun with other settings or data; resume with those of its config.yaml."
    before = _flat(_comparable({name: stored.get(name) for name in config.fixed()}))
    after = _flat(config.fixed())
    changed = [
        f"{option(name)} {shown(before.get(name))} and not {shown(after.get(name))}"
        for name in after | before
        if name not in ADJUSTABLE and before.get(name) != after.get(name)
    ]
    if changed:
        settings = f"{config.out} was begun with other settings, {', '.join(changed)}"
        fix = f"leave them out, or give another --out; there, --weights {config.out / 'last'} begins with"
        return f"{settings}; {fix} what was learned."
    base = ", or the base that its adapters were trained on is another" if adapted else ""
    data = f"{config.out} was begun with other data: images, boxes or classes have changed since{base}"
    return f"{data}; put back what it was begun with, or give another --out."


def stored_settings(folder: Path) -> dict[str, Any]:
    """The settings in the config.yaml of a run; none if it is missing or damaged."""
    try:
        settings = yaml.safe_load((folder / FILE).read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _comparable(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without those that change nothing, so that runs of earlier versions, which lack them, are the same."""
    augment = settings["augment"]
    return settings | {"augment": without_unused(augment) if isinstance(augment, dict) else augment}


def _plain(value: Any) -> Any:
    """A setting as YAML can store it."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings under the names that options have: ``optim.lr``."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def shown(value: Any) -> str:
    """A setting as it is given on the command line, or none."""
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)

"""What makes a resumed run the same run: its settings and its data, as checksums that its state holds."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from boxwright.config import UserError, option, require
from boxwright.data.loader import BatchSource
from boxwright.data.records import Record
from boxwright.data.shards.records import ShardRecords
from boxwright.files import name_as_text
from boxwright.training.config import ADJUSTABLE, RunConfig, resume_error, shown, stored_settings
from boxwright.training.state import Progress


@dataclass(frozen=True)
class RunIdentity:
    """Settings and data of a run.

    Attributes:
        settings: all that change what a step computes, as the model card holds them.
        names: the classes.
        records: the training images.
        data: checksums of images and annotations, see `checksums_of_data`.
    """

    settings: dict[str, Any]
    names: Sequence[str]
    records: Sequence[Record]
    data: dict[str, str]

    @property
    def recipe(self) -> str:
        """Checksum of the settings, the classes and the boxes of the training images."""
        return self._recipe_with({})

    @property
    def adjustable(self) -> dict[str, Any]:
        """The settings that a resumed run may change."""
        return {name: _get(self.settings, name) for name in ADJUSTABLE}

    def _recipe_with(self, changes: dict[str, Any]) -> str:
        settings = self.settings | {"optim": {**self.settings["optim"]}}
        for name, value in changes.items():
            group, _, key = name.rpartition(".")
            (settings[group] if group else settings)[key] = value
        images = _described(self.records, lambda record: (record.boxes_N4,))
        begin = json.dumps([settings, list(self.names)], sort_keys=True)
        return _checksum_of_list(begin, images)

    def require_same(self, begun: Progress, config: RunConfig, adapted: bool) -> None:
        """Raise `UserError` for other settings or boxes than a run can go on with; arguments as of `adjust`."""
        if begun.recipe != self.recipe and self._recipe_with(_before(begun, config)) != begun.recipe:
            raise UserError(resume_error(config, adapted))

    def adjust(self, begun: Progress, config: RunConfig, epoch_steps: int, adapted: bool) -> list[str]:
        """The settings with which a run goes on instead of those that it was begun with, as options.

        Args:
            begun: from its state.
            config: the settings to go on with; config.yaml in its folder has those that it was begun with.
            epoch_steps: optimizer steps of an epoch.
            adapted: whether it trains adapters.

        Raises:
            UserError: for other settings, or other data, than a run can go on with.
        """
        self.require_same(begun, config, adapted)
        changed = [] if begun.recipe == self.recipe else self._adjusted(begun, config, epoch_steps)
        known = begun.data or {}
        other = [what for what, checksum in self.data.items() if known.get(what, checksum) != checksum]
        data = f"{config.out} was begun with other data: the {' and the '.join(other)} have changed since"
        require(not other, f"{data}; put back what it was begun with, or give another --out.")
        return changed

    def _adjusted(self, begun: Progress, config: RunConfig, epoch_steps: int) -> list[str]:
        before, now = _before(begun, config), self.adjustable
        done = -(-begun.step // epoch_steps)
        too_few = f"{config.out} has come to epoch {done}: resume with at least --epochs {done}"
        require(self.settings["epochs"] >= done, f"{too_few}, not {self.settings['epochs']}.")
        changed = [name for name in ADJUSTABLE if now[name] != before[name]]
        return [f"{option(name)} {shown(now[name])} and not {shown(before[name])}" for name in changed]


def checksums_of_data(
    train: tuple[BatchSource, Sequence[Record]], val: tuple[BatchSource, Sequence[Record]], names: Sequence[str]
) -> dict[str, str]:
    """Checksums of images and of annotations, by what they are of, as far as the caches know them.

    Args:
        train, val: the images, cached, and their annotations.
        names: the classes.
    """
    found = {}
    for part, (cache, records) in {"training": train, "validation": val}.items():
        found |= {f"{part} {what}": checksum for what, checksum in cache.checksums.items()}
        objects = _described(records, lambda record: (record.boxes_N4, record.labels_N, record.ignore_N))
        found[f"{part} annotations"] = _checksum_of_list(json.dumps([list(names)]), objects)
    return found


def _described(records: Sequence[Record], arrays: Callable[[Record], Iterable[np.ndarray]]) -> Iterable[Any]:
    """Name and arrays of each image; of images in shards, their checksum, which is known without reading them."""
    if isinstance(records, ShardRecords):
        return [records.checksum]
    return ((name_as_text(record.path.name), *(array.tolist() for array in arrays(record))) for record in records)


def _checksum_of_list(begin: str, items: Iterable[Any]) -> str:
    """Checksum of a JSON list with a list of items as its last element, of which one at a time is in memory.

    Args:
        begin: the list before, as JSON.
        items: JSON values.
    """
    digest = hashlib.sha256(f"{begin[:-1]}, [".encode())
    for number, item in enumerate(items):
        digest.update(f"{', ' if number else ''}{json.dumps(item)}".encode())
    digest.update(b"]]")
    return digest.hexdigest()[:16]


def _before(begun: Progress, config: RunConfig) -> dict[str, Any]:
    """The adjustable settings that a run was begun with."""
    stored = stored_settings(config.out)
    return {name: _get(stored, name) for name in ADJUSTABLE} | (begun.adjustable or {})


def _get(settings: dict[str, Any], name: str) -> Any:
    """A setting by the name of its option; None where there is none."""
    group, _, key = name.rpartition(".")
    place = settings.get(group) if group else settings
    return place.get(key) if isinstance(place, dict) else None

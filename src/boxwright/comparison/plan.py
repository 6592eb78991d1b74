"""What a comparison decides before it trains: the epochs of each detector. Stored, so that it can be resumed."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from boxwright.comparison.cost import measure, training_cost
from boxwright.comparison.settings import SharedSettings
from boxwright.config import UserError, option, require, without_unused
from boxwright.files import write_whole
from boxwright.training.recipes import recipe


@dataclass
class Plan:
    """The plan of a comparison, stored as plan.json in its folder.

    Attributes:
        folder: of the comparison.
        settings: shared by all detectors.
        data: checksum of images and objects.
        costs: of training, by detector, with the number of `epochs`.
    """

    folder: Path
    settings: SharedSettings
    data: str
    costs: dict[str, dict[str, float]] = field(default_factory=dict)

    @staticmethod
    def begin(folder: Path, settings: SharedSettings, data: str, resume: bool) -> Plan:
        """A new plan or, to resume, the one in the folder.

        Raises:
            UserError: if there is none to resume, or if it has other settings or data, or may not be overwritten.
        """
        file = folder / "plan.json"
        if not resume:
            there = f"{folder} holds a comparison already"
            require(not file.exists(), f"{there}; add --resume to go on with it, or give another --out.")
            return Plan(folder, settings, data)
        require(file.is_file(), f"nothing to resume: {file} does not exist; compare without --resume first.")
        try:
            stored = json.loads(file.read_text())
            before, begun_data, costs = stored["terms"], stored["data"], stored["costs"]
            before["augment"] = without_unused(before["augment"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{file} is damaged; begin again with another --out.") from error
        changed = [
            f"{option(name)} {before.get(name)} and not {value}"
            for name, value in (asdict(settings) | {"augment": without_unused(settings.augment)}).items()
            if before.get(name) != value
        ]
        begun = f"{folder} was begun with {', '.join(changed)}"
        require(not changed, f"{begun}; resume with the same, or give another --out.")
        require(begun_data == data, f"{settings.data} has changed since {folder} was begun; compare in another --out.")
        return Plan(folder, settings, data, costs)

    def decide_epochs(self, models: Sequence[str], images: int, console: Console) -> None:
        """Measure the training of each detector that was not measured before, and decide how many epochs it gets.

        Args:
            models: the detectors.
            images: number of training images, to say how many epochs are usual.
            console: to report on.

        Raises:
            UserError: if one can't be trained, or the budget is too small for one epoch.
        """
        needed: dict[str, float] = {}  # minutes of an epoch, of detectors for which the budget is too small
        for model in models:
            if model in self.costs:
                continue
            console.print(f"timing some steps of {model}")
            cost = self._measure(model, models)
            minutes = (cost["steps"] * cost["step_seconds"] + cost["end_seconds"]) / 60
            epochs = self.settings.epochs or int((self.settings.minutes or 0) / minutes)
            needed |= {} if epochs else {model: minutes}
            self.costs[model] = cost | {"epochs": epochs, "planned_minutes": epochs * minutes}
            usual = recipe(model, self.settings.size).epochs_for(images)
            console.print(f"  {minutes:.2g} minutes an epoch: {epochs} epochs (by its recipe, `train` takes {usual})")
        if needed:
            enough = math.ceil(max(needed.values()) * 1.05 * 10) / 10
            listed = ", ".join(f"{model} {minutes:.1f}" for model, minutes in needed.items())
            raise UserError(
                f"--minutes {self.settings.minutes:g} is too little for one epoch, in minutes: {listed}; "
                f"give --minutes {enough:g}, or more, or choose faster ones with --models."
            )
        stored = {"terms": asdict(self.settings), "data": self.data, "costs": self.costs}
        write_json(self.folder / "plan.json", stored)

    def _measure(self, model: str, models: Sequence[str]) -> dict[str, float]:
        try:
            return measure(training_cost, self.settings, model)
        except UserError as error:
            others = ",".join(other for other in models if other != model)
            hint = f" Leave it out with --models {others}." if others else ""
            raise UserError(f"{model} can't be compared: {error}{hint}") from error


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write a file of a comparison, whole or not at all."""
    write_whole(file, lambda temporary: temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8"))

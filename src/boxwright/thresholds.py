"""The score above which an object counts, for each class, as the model card of a detector stores it.

`train` and `evaluate` choose it (`boxwright.evaluation.thresholds`). Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np

from boxwright.config import UserError

DEFAULT = 0.5  # of a detector that stores none
_KEY = "thresholds"  # in the card
_MOST_CLASSES = 20  # that are named one by one


@dataclass(frozen=True)
class Thresholds:
    """Scores in [0, 1): an object counts if its score is over that of its class.

    Attributes:
        overall: for each class that has none of its own.
        classes: those of the other classes, by name.
        chosen_on: the images that they were chosen on, in words; empty if none is stored.
    """

    overall: float = DEFAULT
    classes: Mapping[str, float] = field(default_factory=dict)
    chosen_on: str = ""

    def of(self, names: Sequence[str]) -> list[float]:
        """The threshold of each of these classes."""
        return [self.classes.get(name, self.overall) for name in names]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"overall": self.overall, "classes": dict(self.classes), "chosen on": self.chosen_on}

    def to_card(self) -> dict[str, Any]:
        """An entry for the model card."""
        return {_KEY: self.to_dict()}

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> Thresholds:
        """Those that a model card stores, or `DEFAULT` for all classes.

        Raises:
            UserError: if they are no thresholds.
        """
        if _KEY not in card:
            return cls()
        try:
            stored = card[_KEY]
            thresholds = cls(stored["overall"], dict(stored["classes"]), str(stored["chosen on"]))
        except (KeyError, TypeError, ValueError):
            thresholds = cls(-1)
        if not all(is_threshold(value) for value in (thresholds.overall, *thresholds.classes.values())):
            fix = "give a threshold, or `boxwright evaluate WEIGHTS DATA --store true` chooses them again"
            raise UserError(f"the score thresholds in the model card are not numbers from 0 to under 1; {fix}.")
        return thresholds

    def describe(self, names: Sequence[str]) -> str:
        """One line: the thresholds of these classes, and where they come from."""
        if not self.chosen_on:
            return f"score over {self.overall:g} (the detector stores no threshold)"
        values = self.of(names)
        if len(set(values)) == 1:
            text = f"{values[0]:.3f}"
        elif len(names) <= _MOST_CLASSES:
            text = ", ".join(f"{name} {value:.3f}" for name, value in zip(names, values, strict=True))
        else:
            text = f"{min(values):.3f} to {max(values):.3f}, by class"
        return f"score over {text} (stored; chosen on {self.chosen_on})"


def is_threshold(value: Any) -> bool:
    """Whether it is a number from 0 to under 1."""
    return isinstance(value, Real) and not isinstance(value, bool | np.bool_) and 0 <= float(value) < 1

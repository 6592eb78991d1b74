"""The results of one detector in a comparison."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    """The results of one detector.

    Attributes:
        model: its name.
        stats: COCO's numbers and "ECE", the expected calibration error, by name; -1 where undefined.
        parts: AP on each of the parts of the validation images, the same parts for each detector; -1 without objects.
        curve: (seconds of training, AP) of each validation.
        epochs: of training.
        cost: latency_ms, detection_mib, training_mib, parameters.
        per_class: AP of each class by its name, -1 where it does not occur.
        hints: what to try, if it has learned next to nothing.
    """

    model: str
    stats: dict[str, float]
    parts: list[float]
    curve: list[tuple[float, float]]
    epochs: int
    cost: dict[str, float] = field(default_factory=dict)
    per_class: dict[str, float] = field(default_factory=dict)
    hints: list[str] = field(default_factory=list)

    @property
    def ap(self) -> float:
        """COCO's AP on all validation images."""
        return self.stats["AP"]

    @property
    def latency(self) -> float:
        """Milliseconds per image."""
        return self.cost["latency_ms"]

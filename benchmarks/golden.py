"""What the checks of golden folders share: the formula of the weights, the picture, and a result."""

import math
import traceback
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

f32 = np.float32


@dataclass
class Result:
    """One case: how far ours is from the stored numbers.

    Attributes:
        case: what the manifest calls it.
        differences: the largest absolute difference of each stage.
        identical: what must agree exactly, such as tokens and assignments.
        limits: stages with a tolerance of their own, where it is wider than the common one.
        notes: what was not compared, and why.
    """

    case: str
    differences: dict[str, float] = field(default_factory=dict)
    identical: dict[str, bool] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def compare(self, stage: str, ours: npt.ArrayLike, golden: npt.ArrayLike, limit: float | None = None) -> None:
        """Note the largest absolute difference; a stage named twice keeps its worst."""
        one, other = np.asarray(ours, np.float64), np.asarray(golden, np.float64)
        worst = float(np.abs(one - other).max(initial=0.0)) if one.shape == other.shape else math.inf
        self.differences[stage] = max(self.differences.get(stage, 0.0), worst, key=lambda x: math.inf if x != x else x)
        if limit is not None:
            self.limits[stage] = limit

    def same(self, what: str, ours: npt.ArrayLike, golden: npt.ArrayLike) -> None:
        """Note whether two arrays are equal; what is named twice must agree both times."""
        self.identical[what] = self.identical.get(what, True) and np.array_equal(np.asarray(ours), np.asarray(golden))

    def limit(self, stage: str, tolerance: float) -> float:
        """The largest difference that a stage may have."""
        return max(self.limits.get(stage, 0.0), tolerance)

    def failures(self, tolerance: float) -> list[str]:
        """The stages that are not equal."""
        over = [stage for stage, worst in self.differences.items() if not worst <= self.limit(stage, tolerance)]
        return over + [what for what, equal in self.identical.items() if not equal]


def attempt(case: str, function: Callable[..., Result], *arguments: Any) -> Result:
    """A check whose failure to run at all is a result, too, so that the other cases are still told."""
    try:
        return function(*arguments)
    except Exception as error:
        traceback.print_exc()
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return Result(case, identical={f"run to its end ({reason})": False})


def draw(name: str, shape: Sequence[int], kind: str, fan_in: float | None) -> np.ndarray:
    """A weight by the formula of its name.

    Kinds are those of the manifests; what is neither a variance, a scale, a vector nor a table is a matrix.
    """
    x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(shape)).astype(f32)
    formulas: dict[str, Callable[[], np.ndarray]] = {
        "moving_variance": lambda: f32(0.5) + f32(0.5) * np.abs(x),
        "running_var": lambda: f32(0.5) + f32(0.5) * np.abs(x),
        "gamma": lambda: f32(1) + f32(0.1) * x,
        "norm_weight": lambda: f32(1) + f32(0.1) * x,
        **dict.fromkeys(("vector", "embedding", "bias2d", "table"), lambda: f32(0.1) * x),
    }
    return formulas[kind]() if kind in formulas else x / f32(math.sqrt(fan_in or 1))


def picture(height: int, width: int, phase: float = 0.0) -> np.ndarray:
    """The smooth image of the formulas, (height, width, 3) float64 in [0, 1]."""
    h, w, c = np.ogrid[:height, :width, :3]
    return 0.5 + 0.5 * np.sin(0.05 * h * (c + 1) + 0.07 * w + phase)

"""What the checks of golden folders share: the formula of the weights, the image, a case and its result."""

import json
import math
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = Mapping[str, np.ndarray]
SQUARE, PADDED = [(256, 256)], [(230, 301), (261, 200)]  # sizes of the images, by whether there are one or two
TIMES = 10  # times the original's own rounding, which another correct implementation may be away from it
f32 = np.float32


@dataclass
class Result:
    """One case: how far ours is from the stored numbers.

    A stage's limit is the larger of a common tolerance and ten times the original's own float32 noise, where that is
    stored. Where it is not, ten times our own rounding leaves a stage beyond its limit undecided.

    Attributes:
        case: its name in the manifest.
        differences: the largest absolute difference of each stage.
        identical: what must agree exactly, such as tokens and assignments.
        noise: by stage, how far the original in float32 is from itself in float64, as stored.
        rounding: by stage, how far ours in float32 is from ours in float64.
        limits: stages with another limit, such as statistics of random draws.
        notes: what was not compared, and why.
    """

    case: str
    differences: dict[str, float] = field(default_factory=dict)
    identical: dict[str, bool] = field(default_factory=dict)
    noise: dict[str, float] = field(default_factory=dict)
    rounding: dict[str, float] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def compare(
        self, stage: str, ours: npt.ArrayLike, golden: npt.ArrayLike, noise: float = 0.0, limit: float | None = None
    ) -> None:
        """Record the largest absolute difference; a stage named twice keeps its worst."""
        self.differences[stage] = max(self.differences.get(stage, 0.0), largest_difference(ours, golden), key=nan_last)
        self.noise[stage] = max(self.noise.get(stage, 0.0), noise)
        if limit is not None:
            self.limits[stage] = limit

    def compare_training(
        self, stage: str, ours: npt.ArrayLike, golden: npt.ArrayLike, exact: npt.ArrayLike, noise: float = 0.0
    ) -> None:
        """Compare, and record our rounding: the difference of ours to ``exact``, the same in float64."""
        self.compare(stage, ours, golden, noise)
        self.rounding[stage] = max(self.rounding.get(stage, 0.0), largest_difference(ours, exact), key=nan_last)

    def same(self, what: str, ours: npt.ArrayLike, golden: npt.ArrayLike) -> None:
        """Record whether two arrays are equal; what is named twice must agree both times."""
        self.identical[what] = self.identical.get(what, True) and np.array_equal(np.asarray(ours), np.asarray(golden))

    def limit(self, stage: str, tolerance: float) -> float:
        """The largest difference that a stage may have."""
        return self.limits.get(stage, max(TIMES * self.noise.get(stage, 0.0), tolerance))

    def undecided(self, tolerance: float) -> list[str]:
        """Stages beyond their limit by what rounding explains."""
        return [
            stage for stage, rounding in self.rounding.items()
            if self.limit(stage, tolerance) < self.differences[stage] <= TIMES * rounding
        ]  # fmt: skip

    def failures(self, tolerance: float) -> list[str]:
        """The stages that are not equal."""
        within = [stage for stage, worst in self.differences.items() if worst <= self.limit(stage, tolerance)]
        over = self.differences.keys() - within - set(self.undecided(tolerance))
        return [*over, *(what for what, equal in self.identical.items() if not equal)]


def largest_difference(ours: npt.ArrayLike, golden: npt.ArrayLike) -> float:
    """The largest absolute difference of two arrays, infinite for arrays of other shapes."""
    one, other = np.asarray(ours, np.float64), np.asarray(golden, np.float64)
    return float(np.abs(one - other).max(initial=0.0)) if one.shape == other.shape else math.inf


def nan_last(difference: float) -> float:
    """A key by which NaN is the largest."""
    return math.inf if math.isnan(difference) else difference


def attempt(case: str, function: Callable[..., Result], *arguments: Any) -> Result:
    """The result of a check; one that raises has failed, and the other cases still run."""
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


def smooth_image(height: int, width: int, phase: float = 0.0) -> np.ndarray:
    """The smooth image of the formulas, (height, width, 3) float64 in [0, 1]."""
    h, w, c = np.ogrid[:height, :width, :3]
    return 0.5 + 0.5 * np.sin(0.05 * h * (c + 1) + 0.07 * w + phase)


@dataclass(frozen=True)
class Case:
    """A golden file of a folder with DETR's networks, and the files that belong to it.

    Attributes:
        name: of the folder and the file.
        manifest: settings, and the names, shapes and kinds of the weights.
        golden: inputs and outputs.
        summary: losses, and how the weights of a sharp case are scaled; may be empty.
        noise_by_stage: how far the original in float32 is from itself in float64.
    """

    name: str
    manifest: Mapping[str, Any]
    golden: Arrays
    summary: Mapping[str, Any]
    noise_by_stage: Mapping[str, float]

    def noise(self, *stages: str) -> float:
        """The largest noise of the original in these stages; 0 where none is stored."""
        return max((self.noise_by_stage.get(stage, 0.0) for stage in stages), default=0.0)

    @property
    def sizes(self) -> Sequence[tuple[int, int]]:
        """Heights and widths of the images, from their mask, or without one from their number."""
        if "input_mask" in self.golden:
            return [(int((~mask)[:, 0].sum()), int((~mask)[0].sum())) for mask in self.golden["input_mask"]]
        return SQUARE if len(self.golden["input_slice"]) == 1 else PADDED


def cases(folder: Path) -> Iterator[Case]:
    """All `golden_CASE.npz` of a folder; a case begins with the variant of its manifest, `manifest_VARIANT.json`."""
    manifests = {file.stem.removeprefix("manifest").removeprefix("_"): file for file in folder.glob("manifest*.json")}
    noise = json.loads(file.read_text()) if (file := folder / "fp32_noise.json").is_file() else {}
    for file in sorted(folder.glob("golden*.npz")):
        case = file.stem.removeprefix("golden").removeprefix("_")
        variants = [name for name in manifests if f"{case}_".startswith(f"{name}_" if name else "")]
        if not variants:
            raise ValueError(f"{file} belongs to none of the manifests beside it")
        manifest = json.loads(manifests[max(variants, key=len)].read_text())
        losses = folder / f"losses_{case}.json"
        summary = json.loads(losses.read_text()) if losses.is_file() else {}
        yield Case(f"{folder.name} {case}", manifest, read_arrays(file), summary, stage_noise(noise.get(case, {})))


def stage_noise(stored: Mapping[str, Any]) -> dict[str, float]:
    """The original's noise by stage, as stored for a case."""
    return {stage: facts["max_abs"] for stage, facts in stored.items() if "max_abs" in facts}


def thin(ours: npt.ArrayLike, golden: np.ndarray) -> np.ndarray:
    """Every n-th element of each axis, in the shape of the golden array."""
    array = np.asarray(ours)
    for axis, (have, want) in enumerate(zip(array.shape, golden.shape, strict=True)):
        step = next((step for step in range(1, have + 1) if -(-have // step) == want), 1)
        array = array[(slice(None),) * axis + (slice(None, None, step),)]
    return array


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """All arrays of an npz file."""
    with np.load(file, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def is_sharp(golden: Arrays) -> bool:
    """Whether this is a case with replaced tensors, in which all others are scaled as the manifest says."""
    return any(name.startswith("override:") for name in golden)


def weights(manifest: Mapping[str, Any], golden: Arrays, summary: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """All tensors of a manifest of PyTorch's names by the formula, in a sharp case scaled and replaced."""
    extra = summary.get("sharp_extra_gain") or {}
    values = {}
    for entry in manifest["keys"]:
        name = entry["key"]
        values[name] = weight(entry)
        if is_sharp(golden):
            values[name] = values[name] * f32(entry.get("sharp_gain", 1)) * f32(extra.get(name, 1))
        values[name] = np.asarray(golden.get(f"override:{name}", values[name]))
    for entry in manifest["keys"]:  # the same tensor under another name
        if entry.get("alias_of") in values:
            values[entry["key"]] = values[entry["alias_of"]]
    return values


def weight(entry: Mapping[str, Any]) -> np.ndarray:
    """One tensor by the formula of its name."""
    if entry["kind"] in ("num_batches_tracked", "constant"):
        return np.full(entry["shape"], entry.get("constant", 0), f32)
    return draw(entry.get("alias_of", entry["key"]), entry["shape"], entry["kind"], entry["fan_in"])


def canvas(sizes: Sequence[tuple[int, int]], sharp: bool) -> np.ndarray:
    """Images of these heights and widths on a common canvas, (B, H, W, 3) float64 in [0, 1]."""
    canvas_BHWC = np.zeros((len(sizes), *np.max(sizes, 0), 3))
    for phase, (height, width) in enumerate(sizes):
        p = smooth_image(height, width, phase)
        if sharp:
            h, w, c = np.ogrid[:height, :width, :3]
            p = 0.25 + p / 2 + 0.25 * np.sin(0.0009 * h * w * (c + 1) + 0.31 * h - 0.17 * w + 2 * phase)
        canvas_BHWC[phase, :height, :width] = p
    return canvas_BHWC

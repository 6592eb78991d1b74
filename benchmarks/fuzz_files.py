"""Flip bits in every kind of file, and damage annotations: is each flip noticed that changes a number?

    python benchmarks/fuzz_files.py --flips 200 --data_sets 200

A cache (its images, its other files), a state, a checkpoint and an exported file are opened with one flipped bit each
time; every second flip is in the first 4 kB, where headers are. A flip is `noticed` (one error, or the file is made
again), `harmless` (the same numbers come out), `missed` (others do), or a `crash` (any other exception). Annotations in
all formats get up to five damaged places: they are `read`, `refused` in one line, or a `crash`. The exit code is 1
after a missed flip or a crash. What the checksums cost is measured by `benchmarks/load_time.py`.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

import boxwright
import boxwright.runtime
from boxwright.checkpoints.detector_file import load_detector, save_detector
from boxwright.config import UserError
from boxwright.data.cache import Cache, build
from boxwright.data.read import read
from boxwright.deployment.onnx.onnx_file import save, to_onnx
from boxwright.models import registry
from boxwright.training.state import FILE, Progress, read_state, save_state

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from helpers.foreign_datasets import ONE_CLASS, TWO_CLASSES
from helpers.mutations import flip, mutate
from helpers.training_runs import squares_and_discs

HEAD = 4096  # bytes
KINDS = ("state", "checkpoint", "exported", "cache: images", "cache: rest")
BAD = ("missed", "crash")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=200, help="in each kind of file")
    parser.add_argument("--data_sets", type=int, default=200, help="damaged ones in each format")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    total: Counter[str] = Counter()
    with TemporaryDirectory() as folder:
        os.environ["BOXWRIGHT_CACHE"] = str(Path(folder) / "home")
        files = Files(Path(folder), image_size=64)
        for kind in KINDS:
            counts = files.count_flips(kind, options.flips, random.Random(options.seed))
            total += counts
            print(f"{kind:14} {shown(counts)}", flush=True)
        counts = damaged_data_sets(Path(folder), options.data_sets, options.seed)
        print(f"annotations    {shown(counts)}")
    sys.exit(any((total + counts)[what] for what in BAD))


def shown(counts: Counter[str]) -> str:
    return ", ".join(f"{what} {count}" for what, count in sorted(counts.items()))


class Files:
    """A file of each kind, of a small detector on painted squares and discs; each is written when it is needed."""

    def __init__(self, folder: Path, image_size: int, backbone: str | None = "test_efficientnet"):
        self.folder, self.data, self.side = folder, folder / "data", image_size
        self.data.mkdir()
        self.records = read(squares_and_discs(self.data)).splits["train"]
        torch.manual_seed(0)
        names, more = ("square", "disc"), {"backbone": backbone, "pretrained": False}
        self.detector = registry.build("dense", "nano", names, image_size=image_size, **more).eval()
        self.image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)

    @cached_property
    def state(self) -> Path:
        optimizer = torch.optim.AdamW(self.detector.parameters())
        torch.stack([parameter.sum() for parameter in self.detector.parameters()]).sum().backward()
        optimizer.step()
        save_state(self.folder, Progress(3, 0.5, 1, "abc"), self.detector, None, optimizer)
        return self.folder / FILE

    @cached_property
    def checkpoint(self) -> Path:
        save_detector(self.folder / "best.safetensors", self.detector, {"epoch": 1})
        return self.folder / "best.safetensors"

    @cached_property
    def exported(self) -> Path:
        save(to_onnx(load_detector(self.checkpoint)), self.folder / "best.onnx")
        return self.folder / "best.onnx"

    def open_cache(self) -> Cache:
        return build(self.records, self.side, mode="pixels", quiet=True)

    def count_flips(self, kind: str, flips: int, chance: random.Random) -> Counter[str]:
        """How flips of one bit in a kind of file come out."""
        places, numbers = self._kind(kind)
        expected, counts = numbers(), Counter[str]()
        for number in range(flips):
            file = chance.choice(places)
            content = file.read_bytes()
            end = min(HEAD, len(content)) if number % 2 else len(content)
            file.write_bytes(flip(content, chance.randrange(8 * end)))
            counts[outcome(numbers, expected, partial(is_mended, file, content))] += 1
            file.write_bytes(content)
        return counts

    def _kind(self, kind: str) -> tuple[list[Path], Callable[[], list[Any]]]:
        """Files of a kind, and a function that reads all numbers in them."""
        if kind == "state":
            return [self.state], self.read_state
        if kind == "checkpoint":
            return [self.checkpoint], self.read_checkpoint
        if kind == "exported":
            return [self.exported], self.predict
        images = self.open_cache().folder / "images.bin"
        rest = sorted(file for file in images.parent.rglob("*") if file.is_file() and file != images)
        return [images] if kind == "cache: images" else rest, self.read_batch

    def read_state(self) -> list[Any]:
        progress, tensors = read_state(self.state.parent)
        return [progress, {key: value.numpy().tobytes() for key, value in tensors.items()}]

    def read_checkpoint(self) -> list[Any]:
        found = load_detector(self.checkpoint)
        state = {key: value.numpy().tobytes() for key, value in found.state_dict().items()}
        return [found.config, found.names, found.card, state]

    def predict(self) -> list[Any]:
        detector = boxwright.runtime.Detector(self.exported, "cpu", threads=1)
        found = detector.predict(self.image, threshold=0.0)
        return [detector.facts, found.boxes_N4.tobytes(), found.scores_N.tobytes(), found.labels_N.tobytes()]

    def read_batch(self) -> list[Any]:
        batch = self.open_cache().batch(range(len(self.records)))
        return [value.contiguous().numpy().tobytes() for value in vars(batch).values()]


def is_mended(file: Path, content: bytes) -> bool:
    """Whether a damaged file was made again."""
    return not file.is_file() or file.read_bytes() == content


def outcome(numbers: Callable[[], list[Any]], expected: list[Any], mended: Callable[[], bool]) -> str:
    """What comes of reading numbers from a damaged file."""
    try:
        same = quietly(numbers) == expected
    except UserError:
        return "noticed"
    except Exception:
        print(f"  {place_of_error()}")
        return "crash"
    if not same:
        return "missed"
    return "noticed" if mended() else "harmless"


def quietly(function: Callable[..., Any], *arguments: Any) -> Any:
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        return function(*arguments)


def place_of_error() -> str:
    """Where the exception that is being handled was raised, and what it says."""
    error = sys.exc_info()[1]
    assert error is not None
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {Path(frame.filename).name}, line {frame.lineno}: {str(error)[:200]!r}"


def damaged_data_sets(folder: Path, cases: int, seed: int) -> Counter[str]:
    """How data sets of each format are read, so many with damaged annotations each."""
    total, slowest = Counter[str](), 0.0
    makers: dict[str, Callable[[Path], Any]] = {make.__name__: make for make in [*TWO_CLASSES, *ONE_CLASS]}
    for form in ("coco", "voc", "yolo"):
        makers[form] = partial(_squares, form=form)
    for name, make in makers.items():
        root = folder / "annotations" / name
        root.mkdir(parents=True)
        quietly(make, root)
        counts, seconds = damaged_annotations(root, cases, random.Random(f"{name} {seed}"))
        total, slowest = total + counts, max(slowest, seconds)
    print(f"slowest damaged data set: {slowest:.2f} s of CPU time")
    return total


def _squares(root: Path, form: str) -> None:
    (root.parent / f"{form}-source").mkdir()
    boxwright.convert(squares_and_discs(root.parent / f"{form}-source", 3, 2), root, to=form)


def damaged_annotations(root: Path, cases: int, chance: random.Random) -> tuple[Counter[str], float]:
    """How a data set is read with damage in one of its files; and the CPU seconds that the slowest one took."""
    files = [file for file in sorted(root.rglob("*")) if file.is_file() and file.suffix.lower() not in (".jpg", ".png")]
    counts, slowest = Counter[str](), 0.0
    for _ in range(cases):
        file = chance.choice(files)
        content = file.read_bytes()
        file.write_bytes(mutate(content, chance))
        begun = time.process_time()
        counts[outcome_of_reading(root)] += 1
        slowest = max(slowest, time.process_time() - begun)
        file.write_bytes(content)
    return counts, slowest


def outcome_of_reading(root: Path) -> str:
    try:
        quietly(read, root)
        return "read"
    except UserError as error:
        if "\n" not in str(error):
            return "refused"
        print(f"  {root.name}: an error of several lines: {str(error)[:200]!r}")
    except Exception:
        print(f"  {root.name}: {place_of_error()}")
    return "crash"


if __name__ == "__main__":
    main()

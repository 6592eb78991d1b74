"""Kill training runs at any moment and resume them: how many end as an uninterrupted one, and how many are lost.

    python benchmarks/kill_storm.py --runs 60

Runs of all detectors on painted squares and discs, with a tiny backbone, on the CPU. Each run is killed up to three
times and then goes on to its end. Of the kills, a half comes at a random moment; a quarter is aimed at a file operation
in the folder of the run, at once or a few milliseconds after it; a quarter comes during a validation. The kernel ends
the process without any code of it being run, as with SIGKILL: the signal is SIGALRM, whose timer is exact.

A run is identical if its metrics and all tensors of its best and last weights are those of the uninterrupted run, bit
by bit. It is lost if neither `--resume` nor `train` takes its folder. Curves are not drawn, as that takes longest. The
exit code is 1 if a run was lost or differs.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors.numpy import load_file

import boxwright.__main__
import boxwright.training.run
from boxwright.training import loop
from boxwright.visualization import charts

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from helpers.training_runs import COMMON, rows, squares_and_discs

MODELS = ("dense", "detr", "deformable", "pix2seq", "patchseq")
KILLS, EPOCHS = 3, 3  # kills of one run, at most
TRAIN, VAL = 8, 4  # images
OPERATIONS = ("open", "os.rename", "os.chmod", "os.remove", "os.mkdir")  # on files, as Python's audit names them
LONGEST = 3600  # seconds that one process may take


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        counts = storm(Path(folder), options.runs, options.models, random.Random(options.seed))
    print(", ".join(f"{what} {count}" for what, count in counts.items()), f"(seed {options.seed})")
    sys.exit(counts["identical"] < counts["runs"])


def storm(folder: Path, runs: int, models: Sequence[str], chance: random.Random) -> dict[str, int]:
    """Counts of runs, kills, identical and lost ones."""
    os.environ["BOXWRIGHT_CACHE"] = str(folder / "cache")
    charts.curves = lambda table, out: out.touch()
    (folder / "data").mkdir()
    data = squares_and_discs(folder / "data", TRAIN, VAL)
    whole = {model: Whole(data, folder / f"whole-{model}", model) for model in models[:runs]}
    counts = {"runs": runs, "kills": 0, "identical": 0, "lost": 0}
    for number in range(runs):
        model, out = models[number % len(models)], folder / f"run-{number}"
        killed = killed_run(data, out, whole[model], chance)
        resumed = finish(data, out, model)
        counts["kills"] += len(killed)
        counts["identical"] += resumed and is_same(out, whole[model].out)
        counts["lost"] += not resumed
        print(f"{number + 1:3} {model:10} killed at {', '.join(map(str, killed)) or '-'}", flush=True)
        if not resumed:
            print(f"    LOST: {sorted(file.name for file in out.iterdir())}", flush=True)
    return counts


@dataclass(frozen=True)
class Kill:
    """When a process ends: `seconds` after its start, after its n-th file operation, or in its n-th validation."""

    event: str
    number: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.event} {self.number} + {self.seconds:.3f} s"


class Whole:
    """An uninterrupted run, and how long and how many file operations it took."""

    def __init__(self, data: Path, out: Path, model: str):
        self.out, self.model = out, model
        begun, report = time.monotonic(), out.with_suffix(".operations")
        code = train(data, out, model, count=report)
        assert code == 0, f"{model} can't be trained at all: exit code {code}"
        self.seconds, self.operations = time.monotonic() - begun, int(report.read_text())

    def choose(self, chance: random.Random) -> Kill:
        """A moment to end another run."""
        event = chance.choice(["start", "start", "file", "validation"])
        if event == "start":
            return Kill(event, 1, chance.uniform(0, self.seconds))
        if event == "file":
            return Kill(event, chance.randint(1, self.operations), chance.choice([0.0, chance.uniform(0, 0.005)]))
        return Kill(event, chance.randint(1, EPOCHS), chance.uniform(0, self.seconds / EPOCHS / 2))


def killed_run(data: Path, out: Path, whole: Whole, chance: random.Random) -> list[Kill]:
    """Begin a run and kill it up to `KILLS` times; the kills that came before its end."""
    killed: list[Kill] = []
    for _ in range(chance.randint(1, KILLS)):
        kill = whole.choose(chance)
        resume = ["--resume"] if (out / "config.yaml").is_file() else []
        code = train(data, out, whole.model, *resume, kill=kill)
        if code != -signal.SIGALRM:
            break
        killed.append(kill)
    return killed


def finish(data: Path, out: Path, model: str) -> bool:
    """Let a run go on to its end, as a user would; False if it is lost."""
    return train(data, out, model, "--resume") == 0 or train(data, out, model) == 0


def is_same(run: Path, whole: Path) -> bool:
    """Whether two runs have the same metrics, and best and last weights with the same tensors."""
    for name in (loop.BEST, loop.LAST):
        one, other = load_file(run / name), load_file(whole / name)
        if one.keys() != other.keys() or any(one[key].tobytes() != other[key].tobytes() for key in one):
            return False
    return rows(run) == rows(whole)


def train(data: Path, out: Path, model: str, *more: str, kill: Kill | None = None, count: Path | None = None) -> int:
    """Train in a forked process, so that torch is imported once; the exit code, negative after a signal.

    Args:
        data, out, model: what is trained, and where.
        more: further options.
        kill: when it is killed.
        count: a file to write the number of file operations to.
    """
    process = os.fork()
    if not process:
        code = 70
        try:
            code = _in_child(
                ["train", str(data), "--out", str(out), "--model", model, *COMMON, *more], out, kill, count
            )
        finally:
            os._exit(code)
    end = time.monotonic() + LONGEST
    while not (ended := os.waitpid(process, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.kill(process, signal.SIGKILL)
        time.sleep(0.02)
    return os.waitstatus_to_exitcode(ended[1])


def _in_child(command: list[str], out: Path, kill: Kill | None, count: Path | None) -> int:
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    operations = _count_operations(out, kill)
    if kill is not None and kill.event == "validation":
        _arm_validation(kill)
    if kill is not None and kill.event == "start":
        signal.setitimer(signal.ITIMER_REAL, max(kill.seconds, 1e-6))
    code = boxwright.__main__.main([*command, "--epochs", str(EPOCHS)])
    if count is not None:
        count.write_text(str(len(operations)))
    return code


def _count_operations(out: Path, kill: Kill | None) -> list[str]:
    """A list that grows with each file operation in a folder; the process ends when it is as long as `kill` says."""
    operations: list[str] = []
    folder = str(out)

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event in OPERATIONS and str(arguments[0]).startswith(folder):
            operations.append(event)
            if kill is not None and kill.event == "file" and len(operations) == kill.number:
                signal.setitimer(signal.ITIMER_REAL, max(kill.seconds, 1e-6))

    sys.addaudithook(note)
    return operations


def _arm_validation(kill: Kill) -> None:
    original, calls = loop.validate_on_all_devices, iter(range(1, EPOCHS + 1))

    def validate(*arguments: Any) -> Any:
        if next(calls) == kill.number:
            signal.setitimer(signal.ITIMER_REAL, max(kill.seconds, 1e-6))
        return original(*arguments)

    loop.validate_on_all_devices = validate


if __name__ == "__main__":
    main()

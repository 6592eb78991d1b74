"""How fast `predict` is in one process, in two that do a part each, and on a Ray cluster of one and two workers.

    python benchmarks/predict_parts.py MODEL.onnx [--images 20000] [--ways "one process" ...] [--work FOLDER]
        [--write FILE]

The images are those of the bundled BCCD, linked again and again under other names. Wall time from the command to the
results, all in one run. A process has one core, as machines of a cluster have their own; a Ray worker computes on one
thread and decodes on others. `start` is the time of the same command for 16 images, which is mostly imports; the rest
is given for each image. What is found must be the same in all. `CPU ms` is that of an image in the processes of the
command, without their start, and without Ray's: on a machine that others use, it says what the wall can't.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

from ablation import BCCD, Table

from boxwright.data.read import read

FEW = 16
PORT = 6399  # of the Ray cluster
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0", "RAY_AUTH_MODE": "disabled"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--work", type=Path)
    parser.add_argument("--write", type=Path)
    a = parser.parse_args()
    title = f"{a.images} images, {a.model.name}"
    table = Table(title, "how", "start, s", "all, s", "ms an image", "CPU ms", "images/s", "times the first")
    first, reference = 0.0, b""
    with TemporaryDirectory(dir=a.work) as name:
        folder = Path(name)
        few, many = (linked(folder / str(count), count) for count in (FEW, a.images))
        for how in a.ways:
            runs = [timed(WAYS[how], a.model, images, folder / "out") for images in (few, many)]
            (start, start_cpu, _), (taken, cpu, found) = runs
            first, reference = first or taken, reference or found
            assert found == reference, f"{how}: other objects"
            each = (taken - start) / (a.images - FEW)
            computing = "" if how.startswith("Ray") else f"{1000 * (cpu - start_cpu) / (a.images - FEW):.1f}"
            cells = f"{start:.1f}", f"{taken:.0f}", f"{1000 * each:.1f}", computing
            table.add(how, *cells, f"{1 / each:.1f}", f"{first / taken:.2f}")
    table.append_to(a.write)


def linked(folder: Path, count: int) -> Path:
    """A folder with so many images."""
    folder.mkdir()
    records = [record for split in read(BCCD).splits.values() for record in split]
    for number, record in enumerate(islice(cycle(records), count)):
        (folder / f"{number:07}.jpg").symlink_to(record.path.resolve())
    return folder


def timed(run: Callable[[list[str]], float], model: Path, images: Path, out: Path) -> tuple[float, float, bytes]:
    """Wall seconds until everything is found, CPU seconds of the processes, and what was found."""
    shutil.rmtree(out, ignore_errors=True)
    before = os.times()
    seconds = run([str(model), str(images), "--out", str(out), "--overlays", "false"])
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    if not (out / "predictions.json").exists():
        subprocess.run([sys.executable, "-m", "boxwright", "merge-results", out], check=True, stdout=subprocess.DEVNULL)
    return seconds, cpu, (out / "predictions.json").read_bytes()


def processes(count: int, arguments: list[str]) -> float:
    """Processes on a core each."""
    started = time.perf_counter()
    running = [
        predict([*arguments, "--part", f"{number + 1}/{count}"], ["taskset", "-c", str(number)])
        for number in range(count)
    ]
    assert not any(process.wait() for process in running)
    return time.perf_counter() - started


def workers(count: int, arguments: list[str]) -> float:
    """A Ray cluster with so many cores, which runs already."""
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    head = ["start", "--head", "--node-ip-address=127.0.0.1", f"--port={PORT}", f"--num-cpus={count}"]
    quiet = ["--disable-usage-stats", "--include-dashboard=false"]
    subprocess.run([*ray, *head, *quiet], env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL)
    try:
        started = time.perf_counter()
        assert not predict([*arguments, "--engine", "ray", "--address", f"127.0.0.1:{PORT}"], []).wait()
        return time.perf_counter() - started
    finally:
        subprocess.run([*ray, "stop", "--force"], check=True, stdout=subprocess.DEVNULL)


def predict(arguments: list[str], before: list[str]) -> "subprocess.Popen[bytes]":
    """The command line."""
    command = [*before, sys.executable, "-m", "boxwright", "predict", *arguments]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL)


WAYS = {
    "one process": partial(processes, 1),
    "two processes": partial(processes, 2),
    "Ray, one worker": partial(workers, 1),
    "Ray, two workers": partial(workers, 2),
}


if __name__ == "__main__":
    main()

"""What a detector costs: seconds and memory to train it, milliseconds and memory to detect with it.

Each is measured in a process of its own, so that the peak of memory is that detector's alone.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from boxwright.checkpoints.detector_file import load_detector
from boxwright.comparison.settings import Terms
from boxwright.config import UserError
from boxwright.data.cache import build
from boxwright.evaluation.run import detect_batch
from boxwright.training.begin import make_detector, read_data
from boxwright.training.fabric import make_fabric
from boxwright.training.loop import Loop
from boxwright.training.resolve import resolve

WARM_UP, LEAST, MOST, SECONDS = 3, 5, 50, 10.0  # of what is timed: images, and how long it goes on


def training_cost(terms: Terms, model: str) -> dict[str, float]:
    """``step_seconds``, ``steps`` of an epoch, ``end_seconds`` of what ends it (validation, pictures, saving), and
    ``training_mib``: the peak of memory.
    """
    with TemporaryDirectory() as folder:
        config = resolve(terms.run_config(model, Path(folder), epochs=1))
        names, records, val_records = read_data(config)
        fabric, _ = make_fabric(config.device, config.precision, config.devices, config.nodes)
        torch.manual_seed(config.seed)
        detector, _ = make_detector(config, None, names)
        train, val = (build(part, terms.image_size, quiet=True) for part in (records, val_records))
        loop = Loop(fabric, detector, config, train, (val, val_records))
        step, end = loop.rehearse(LEAST, MOST, SECONDS)
    return {"step_seconds": step, "steps": loop.epoch_steps, "end_seconds": end, "training_mib": peak_mib(terms.device)}


def detection_cost(terms: Terms, weights: str) -> dict[str, float]:
    """``latency_ms``, the median of one image at a time from canvas to boxes in pixels, ``detection_mib``, the peak of
    memory, and ``parameters``.
    """
    _, _, records = terms.records()
    cache = build(records, terms.image_size, quiet=True)
    detector = load_detector(weights, terms.device)
    taken: list[float] = []
    begun = time.perf_counter()
    while len(taken) < WARM_UP + LEAST or (len(taken) < WARM_UP + MOST and time.perf_counter() - begun < SECONDS):
        batch = cache.batch([len(taken) % len(cache)]).to(terms.device)
        started = time.perf_counter()
        detect_batch(detector, batch)
        taken.append(1000 * (time.perf_counter() - started))
    parameters = sum(p.numel() for p in detector.parameters())
    latency = statistics.median(taken[WARM_UP:])
    return {"latency_ms": latency, "detection_mib": peak_mib(terms.device), "parameters": parameters}


def peak_mib(device: str) -> float:
    """The most memory so far, in MiB: what torch held on a GPU, elsewhere all of this process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.is_file():  # not getrusage, which counts the process that started this one, too
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(function: Callable[[Terms, str], dict[str, float]], terms: Terms, what: str) -> dict[str, float]:
    """`function(terms, what)`, one of the two above, in a process of its own.

    Raises:
        UserError: as the function does, or if its process dies, which a lack of memory can do.
    """
    asked = json.dumps([function.__name__, asdict(terms), what])
    done = subprocess.run([sys.executable, "-m", __name__], input=asked, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    said = " ".join((done.stderr.strip().splitlines() or ["without a word"])[-1].split())[:300]
    if done.returncode == -9:
        said = "its process was killed, most likely for want of memory"
    raise UserError(said.removeprefix("error: "))


def _main() -> int:
    name, terms, what = json.load(sys.stdin)
    function = {"training_cost": training_cost, "detection_cost": detection_cost}[name]
    try:
        print("\n" + json.dumps(function(Terms(**terms), what)))
    except (UserError, torch.OutOfMemoryError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(_main())

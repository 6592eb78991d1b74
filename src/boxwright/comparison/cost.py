"""What a detector costs: seconds and memory to train it, milliseconds and memory to detect with it.

Each is measured in a process of its own, so that the peak of memory belongs to that detector alone.
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
from boxwright.comparison.settings import SharedSettings
from boxwright.config import UserError
from boxwright.data.cache import build
from boxwright.evaluation.run import detect_batch
from boxwright.training.begin import make_detector, read_data
from boxwright.training.fabric import make_fabric
from boxwright.training.loop import Loop
from boxwright.training.resolve import resolve

WARM_UP, LEAST, MOST, SECONDS = 3, 5, 50, 10.0  # images (or steps) to leave out, to time, and for how long


def training_cost(settings: SharedSettings, model: str) -> dict[str, float]:
    """Measure the training of a detector.

    Returns:
        ``step_seconds``; ``steps`` of an epoch; ``end_seconds`` of its end (validation, pictures, saving); and
        ``training_mib``, the peak of memory.
    """
    with TemporaryDirectory() as folder:
        config = resolve(settings.run_config(model, Path(folder), epochs=1))
        names, records, val_records = read_data(config)
        fabric, _ = make_fabric(config.device, config.precision, config.devices, config.nodes)
        torch.manual_seed(config.seed)
        detector, _ = make_detector(config, None, names)
        train, val = (build(part, settings.image_size, quiet=True) for part in (records, val_records))
        loop = Loop(fabric, detector, config, train, (val, val_records))
        step, end = loop.measure_time(LEAST, MOST, SECONDS)
    return {
        "step_seconds": step,
        "steps": loop.epoch_steps,
        "end_seconds": end,
        "training_mib": peak_mib(settings.device),
    }


def detection_cost(settings: SharedSettings, weights: str) -> dict[str, float]:
    """Measure detection, one image at a time.

    Returns:
        ``latency_ms``, the median from canvas to boxes in pixels; ``detection_mib``, the peak of memory; and
        ``parameters``.
    """
    _, _, records = settings.records()
    cache = build(records, settings.image_size, quiet=True)
    detector = load_detector(weights, settings.device)
    milliseconds: list[float] = []
    least, most = WARM_UP + LEAST, WARM_UP + MOST
    begun = time.perf_counter()
    while (done := len(milliseconds)) < least or (done < most and time.perf_counter() - begun < SECONDS):
        batch = cache.batch([done % len(cache)]).to(settings.device)
        started = time.perf_counter()
        detect_batch(detector, batch)
        milliseconds.append(1000 * (time.perf_counter() - started))
    parameters = sum(p.numel() for p in detector.parameters())
    latency = statistics.median(milliseconds[WARM_UP:])
    return {"latency_ms": latency, "detection_mib": peak_mib(settings.device), "parameters": parameters}


def peak_mib(device: str) -> float:
    """The peak of memory so far, in MiB: on a GPU what torch held there, elsewhere that of this process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.is_file():  # not getrusage, which includes the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(
    function: Callable[[SharedSettings, str], dict[str, float]], settings: SharedSettings, subject: str
) -> dict[str, float]:
    """`function(settings, subject)` in a process of its own, where `function` is one of the two above.

    Raises:
        UserError: as the function does, or if its process dies, for example for lack of memory.
    """
    call = json.dumps([function.__name__, asdict(settings), subject])
    done = subprocess.run([sys.executable, "-m", __name__], input=call, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    reason = " ".join((done.stderr.strip().splitlines() or ["without a word"])[-1].split())[:300]
    if done.returncode == -9:
        reason = "its process was killed, most likely for want of memory"
    raise UserError(reason.removeprefix("error: "))


def _main() -> int:
    name, settings, subject = json.load(sys.stdin)
    function = {"training_cost": training_cost, "detection_cost": detection_cost}[name]
    try:
        print("\n" + json.dumps(function(SharedSettings(**settings), subject)))
    except (UserError, torch.OutOfMemoryError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(_main())

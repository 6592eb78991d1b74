"""How time and memory grow with images, boxes, classes and processes: three sizes of each, and the line through them.

    python benchmarks/scale.py [--part images "boxes an image" classes processes] [--write FILE]

`images`: CPU seconds and peak memory of training's set-up for sets of 10 boxes an image (`large_sets.py`, without
cache of pixels). `boxes an image` and `classes`: CPU seconds of a training step of `dense` nano on 8 images of 320
px, and the peak memory of the process. `processes`: wall seconds of a step on 8 images in each process, which share
their gradients; they take turns on the cores that there are. Each size runs in its own process, on one thread.
"""

import argparse
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.distributed as dist
from ablation import Table
from large_sets import write_set
from torch.nn.parallel import DistributedDataParallel
from training_step import synthetic

from boxwright.models.dense import SIZES, Dense
from boxwright.training.fabric import keep_memory
from boxwright.training.loop import TrainStep
from boxwright.training.optim import make_optimizer
from boxwright.training.recipes import recipe

BATCH, SIDE, STEPS = 8, 320, 4
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--write", type=Path)
    a = parser.parse_args()
    for part in a.part:
        sizes, measure = PARTS[part]
        table = Table(f"\n{part}", part, "s", "MB")
        found = np.array([measure(size) for size in sizes])
        for size, (seconds, megabytes) in zip(sizes, found, strict=True):
            table.add(size, f"{seconds:.3g}", f"{megabytes:,.0f}")
        lines = [np.polyfit(sizes, column, 1) for column in found.T]
        table.add("each more", *(f"{slope:.2g}" for slope, _ in lines))
        table.append_to(a.write)


def set_up(images: int) -> tuple[float, float]:
    """Seconds and megabytes of training's set-up."""
    with TemporaryDirectory() as folder:
        write_set(Path(folder) / "data", images, 10 * images, 80, shared=True)
        script = Path(__file__).with_name("large_sets.py")
        order = [sys.executable, script, "--child", "set_up", f"{folder}/data", "none", "32"]
        done = subprocess.run(order, check=True, capture_output=True, text=True, env=ENVIRONMENT)
    seconds, megabytes = re.findall(r"([\d.,]+) (?:s of CPU|MB)", done.stdout)
    return float(seconds), float(megabytes.replace(",", ""))


def in_child(boxes: int = 10, classes: int = 80, processes: int = 1) -> tuple[float, float]:
    """Seconds of a training step, and megabytes, in a process of its own for each."""
    order = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    order = [*order, __file__, "--child", str(boxes), str(classes)]
    done = subprocess.run(order, check=True, capture_output=True, text=True, env=ENVIRONMENT)
    seconds, megabytes = map(float, done.stdout.split()[-2:])
    return seconds, megabytes


def child(boxes: int, classes: int) -> None:
    """Print the seconds of the fastest of some steps, and the peak memory."""
    keep_memory()
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    detector = Dense(SIZES["nano"], tuple(f"class {k}" for k in range(classes)))
    detector.to(memory_format=torch.channels_last).train()
    alone = dist.get_world_size() == 1
    clock = time.process_time if alone else time.perf_counter
    step = TrainStep(detector) if alone else DistributedDataParallel(TrainStep(detector))
    optimizer, batch, taken = make_optimizer(detector, recipe("dense").optim), synthetic(BATCH, SIDE, boxes), []
    for _ in range(STEPS):
        started = clock()
        torch.stack(list(step(lambda: batch).values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        taken.append(clock() - started)
    if dist.get_rank() == 0:
        print(min(taken), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)
    dist.destroy_process_group()


PARTS: dict[str, tuple[tuple[int, ...], Callable[[int], tuple[float, float]]]] = {
    "images": ((20_000, 80_000, 320_000), set_up),
    "boxes an image": ((10, 100, 400), in_child),
    "classes": ((3, 80, 1000), lambda count: in_child(classes=count)),
    "processes": ((1, 2), lambda count: in_child(processes=count)),
}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*map(int, sys.argv[2:]))
    else:
        main()

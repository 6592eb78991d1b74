"""A training step of `dense` with Lite0: ours and the plain eager loop, in turns in one run.

    python benchmarks/training_step.py [--steps 10] [--batch 16] [--image-size 320] [--compile]

Plain: the same network and loss, contiguous (NCHW) memory, every weight trained, batch norms in training mode. The next
rows add our changes one by one: channels-last memory, norms with ImageNet statistics and a frozen stem, memory that
glibc keeps between steps. The last applies to the whole process, so it is measured after the others.

`--compile`: ours beside ours by `torch.compile` with static shapes, the network alone, and with its loss. Seconds of
CPU, which a busy machine changes least: until the second step is done, which is compiling, and of a step; and after how
many minutes of training compiling has paid.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
import torch._inductor.config as inductor
from torch import nn

from boxwright.config import Optim
from boxwright.models.dense import SIZES, Dense
from boxwright.training.fabric import keep_memory
from boxwright.training.optim import make_optimizer
from boxwright.types import Batch


def synthetic(count: int, side: int, objects: int = 12) -> Batch:
    """A batch of noise with a dozen boxes per image, as in BCCD."""
    corner = torch.rand(count, objects, 2) * 0.7
    return Batch(
        images_BCHW=torch.rand(count, 3, side, side),
        sizes_B2=torch.full((count, 2), side),
        originals_B2=torch.full((count, 2), side),
        boxes_BN4=torch.cat([corner, corner + 0.05 + torch.rand(count, objects, 2) * 0.2], -1),
        labels_BN=torch.randint(0, 3, (count, objects)),
        valid_BN=torch.ones(count, objects, dtype=torch.bool),
        index_B=torch.arange(count),
    )


class Contiguous(Dense):
    """The same detector with torch's default memory layout."""

    def forward(self, images_BCHW, sizes_B2, targets=None):
        images = (images_BCHW - self.backbone.mean) / self.backbone.std
        maps = self.pyramid(self.backbone.net(images))
        return self._predict(maps, images.shape[-2:])


def make(kind: type[Dense], frozen: bool) -> tuple[Dense, torch.optim.Optimizer]:
    torch.manual_seed(0)
    detector = kind(SIZES["nano"], ("a", "b", "c"))
    if not frozen:
        detector.backbone.frozen = False
        detector.requires_grad_(True)
    if kind is Dense:
        detector.to(memory_format=torch.channels_last)
    return detector.train(), make_optimizer(detector, Optim(lr=1e-3, backbone_factor=0.2, weight_decay=0.05))


def step(detector: Dense, optimizer: torch.optim.Optimizer, batch: Batch) -> float:
    started = time.perf_counter()
    sum(detector.loss(detector(batch.images_BCHW, batch.sizes_B2, batch), batch).values()).backward()
    nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - started


def in_turns(sides: dict[str, tuple[Dense, torch.optim.Optimizer]], batch: Batch, steps: int) -> dict[str, float]:
    """Median seconds per step of each side, after two steps of warming up."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(steps + 2):
        for name, (detector, optimizer) in sides.items():
            took = step(detector, optimizer, batch)
            if turn >= 2:
                seconds[name].append(took)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def measure_compiling(batch: Batch, steps: int) -> None:
    """Print seconds of compiling and of a step, beside a step that is not compiled."""
    keep_memory()
    inductor.compile_threads = 1  # in this process, whose seconds count
    sides = {name: make(Dense, frozen=True) for name in ("eager", "network", "network and loss")}
    sides["network"][0].compile(dynamic=False)
    whole = sides["network and loss"][0]
    whole.compile(dynamic=False)
    whole.loss = torch.compile(whole.loss, dynamic=False)
    started = {
        name: cpu_seconds(lambda side=side: [step(*side, batch) for _ in range(2)]) for name, side in sides.items()
    }
    taken = {
        name: [cpu_seconds(lambda side=side: step(*side, batch)) for _ in range(steps)] for name, side in sides.items()
    }
    eager = statistics.median(taken["eager"])
    for name, seconds in taken.items():
        each, compiling = statistics.median(seconds), started[name] - 2 * statistics.median(seconds)
        gain = eager - each
        pays = f"pays after {compiling / gain * eager / 60:.0f} min" if gain > 0 else "never pays"
        rest = "" if name == "eager" else f"   {eager / each:.2f} x   {compiling:.0f} s to compile, {pays}"
        print(f"{name:<20} {each:.3f} s a step{rest}", flush=True)


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process and of those that it starts and waits for."""
    before = os.times()
    work()
    after = os.times()
    return sum(after[:4]) - sum(before[:4])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--compile", action="store_true")
    a = parser.parse_args()
    batch = synthetic(a.batch, a.image_size)
    if a.compile:
        return measure_compiling(batch, a.steps)
    sides = {
        "plain eager loop": make(Contiguous, frozen=False),
        "+ channels-last": make(Dense, frozen=False),
        "+ frozen stem and norms": make(Dense, frozen=True),
    }
    seconds = in_turns(sides, batch, a.steps)
    keep_memory()
    kept = in_turns({"+ memory kept (ours)": sides["+ frozen stem and norms"]}, batch, a.steps)
    plain = seconds["plain eager loop"]
    print(f"batch {a.batch}, {a.image_size} px, {torch.get_num_threads()} threads, median of {a.steps} steps")
    for name, median in (seconds | kept).items():
        print(f"{name:<25} {a.batch / median:6.2f} images/s   {plain / median:.2f} x")


if __name__ == "__main__":
    main()

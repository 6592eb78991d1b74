"""What training costs with adapters: memory and time per step of `lora`, `head` and `full` over one plain transformer.

    python benchmarks/adapters.py [--backbone vit_small_patch16_224] [--image-size 224] [--batch 4] [--steps 5]
                                  [--rank 8] [--device cpu] [--write benchmarks/results/adapters.md]

A `dense` on that backbone takes training steps on noise, as `boxwright train` does (AdamW, clipped gradients, a moving
average), each way of training in processes of its own. Weights are random, which changes no cost. A step's time is the
median after two steps of warming up, of CPU time on a CPU. Memory is the peak held by tensors: on a GPU as torch counts
it, on a CPU the peak of a second process above its memory after all imports, with an allocator that returns freed
memory to the system (else gaps between tensors count, too, and vary). `stored` is the file that a run writes.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib import import_module
from pathlib import Path

import torch
from torch import nn
from training_step import synthetic

from boxwright.checkpoints.detector_file import save_detector
from boxwright.checkpoints.lora import adapt
from boxwright.comparison.cost import peak_mib
from boxwright.config import Optim
from boxwright.models.dense import Dense, DenseConfig
from boxwright.training.optim import make_optimizer, moving_average

OPTIM = Optim(lr=1e-3, backbone_factor=0.2, weight_decay=0.05, rule="torch", beta2=0.999)
WAYS = ("full", "lora", "head")


def make(way: str, a: argparse.Namespace) -> Dense:
    """The detector that a run from a backbone of timm starts with."""
    torch.manual_seed(0)
    detector = Dense(DenseConfig(a.backbone, a.image_size), ("a", "b", "c"), pretrained=False)
    detector.backbone.freeze()
    if way != "full":
        adapt(detector, a.rank if way == "lora" else None, None, a.backbone)
    return detector.to(a.device).train()


def measure(way: str, a: argparse.Namespace) -> list[str]:
    """A row of the table."""
    import_module("peft")
    held = 0.0 if a.device == "cuda" else peak_mib(a.device)
    detector = make(way, a)
    trainable = sum(p.numel() for p in detector.parameters() if p.requires_grad)
    total = sum(p.numel() for p in detector.parameters())
    optimizer, average = make_optimizer(detector, OPTIM), moving_average(detector, 0.998)
    batch = synthetic(a.batch, a.image_size).to(a.device)
    clock = time.perf_counter if a.device == "cuda" else time.process_time
    seconds = []
    for _ in range(a.steps + 2):
        started = clock()
        sum(detector.loss(detector(batch.images_BCHW, batch.sizes_B2, batch), batch).values()).backward()
        nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(detector)
        if a.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(clock() - started)
    with tempfile.TemporaryDirectory() as folder:
        save_detector(Path(folder) / "x.safetensors", average.module, {})
        stored = (Path(folder) / "x.safetensors").stat().st_size / 1e6
    row = [
        f"{trainable / 1e6:.2f} M",
        f"{total / 1e6:.2f} M",
        f"{stored:.1f} MB",
        f"{peak_mib(a.device) - held:.0f} MiB",
    ]
    return [*row, f"{1000 * statistics.median(seconds[2:]):.0f} ms"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_small_patch16_224")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--way", choices=(*WAYS, "none"), help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.way:
        print("|".join(measure(a.way, a)))
        return
    rows = []
    for way in WAYS:
        command = [sys.executable, *sys.argv, "--way", way]
        timed, with_memory = (
            subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | extra).stdout
            for extra in ({}, {"MALLOC_MMAP_THRESHOLD_": "65536"})
        )
        *counts, _, took = timed.splitlines()[-1].split("|")
        memory = with_memory.splitlines()[-1].split("|")[-2]
        rows.append(f"| {' | '.join([way, *counts, memory, took])} |")
        print(rows[-1], flush=True)
    device = torch.cuda.get_device_name() if a.device == "cuda" else f"{torch.get_num_threads()} CPU thread(s)"
    command_line = f"`python {' '.join(sys.argv)}`"
    head = (
        f"# Adapters\n\n{command_line}\n\n{date.today()}, {device}, {platform.machine()}, torch {torch.__version__}\n\n"
    )
    about = f"`dense` on {a.backbone}, {a.image_size} px, {a.batch} images per step, rank {a.rank}:\n\n"
    table = "| `--adapt` | trainable | parameters | stored | peak memory | time per step |\n" + "| --- " * 6 + "|\n"
    if a.write:
        a.write.write_text(head + about + table + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()

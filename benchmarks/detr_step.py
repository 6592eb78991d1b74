"""A training step of `detr` and `deformable` with ResNet-50 compared with Hugging Face's, in turns in one run.

    python benchmarks/detr_step.py [--models detr deformable] [--batch 2] [--image-size 480] [--cuda] [--bf16]

The published architectures (6 + 6 layers; 100 queries, or 300 and four levels), 80 classes, images of several sizes in
one batch with 1 to 13 objects each. A step is forward, losses of all layers, backward, clipping and AdamW. Stem, first
stage and batch norms of the backbone are frozen on both sides. Each side is a process of its own and runs as it ships:
ours as in `boxwright train` (channels-last memory, freed memory kept for the next step), Hugging Face's with the fused
AdamW of its Trainer. Needs `pip install transformers`.

Seconds are CPU time on a CPU, which a busy machine does not change much (without `OMP_WAIT_POLICY=PASSIVE` waiting
threads count, too), and wall time on a GPU; the median of `--steps` after two for warming up. Peak memory is that of
the process, or on a GPU what torch allocates.
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import torch
from hugging_face import HuggingFace, package
from torch import nn
from training_step import synthetic

from boxwright.config import Optim
from boxwright.models.deformable import PUBLISHED as PUBLISHED_DEFORMABLE
from boxwright.models.deformable import Deformable
from boxwright.models.detr import PUBLISHED, Detr
from boxwright.training.fabric import keep_memory
from boxwright.training.optim import make_optimizer
from boxwright.types import Batch, Detector

NAMES = tuple(str(number) for number in range(80))
OPTIM = Optim(lr=1e-4, backbone_factor=0.1, weight_decay=1e-4)


def drawn(count: int, side: int) -> Batch:
    """Random images of several sizes on one canvas, each with its objects."""
    batch = synthetic(count, side, objects=13)
    batch.sizes_B2 = (side * (0.6 + 0.4 * torch.rand(count, 2))).long()
    batch.sizes_B2[0] = side
    batch.boxes_BN4 *= (batch.sizes_B2 / side).flip(-1).repeat(1, 2)[:, None]
    batch.labels_BN = torch.randint(len(NAMES), batch.labels_BN.shape)
    batch.valid_BN = torch.arange(13) < torch.randint(1, 14, (count, 1))
    return batch


def ours(model: str, side: int) -> Detector:
    """The detector of `boxwright train --size resnet50` in its published form, with random weights."""
    network, shape = {"detr": (Detr, PUBLISHED), "deformable": (Deformable, PUBLISHED_DEFORMABLE)}[model]
    detector = network(replace(shape, image_size=side), NAMES, pretrained=False)
    detector.backbone.freeze()
    return detector.to(memory_format=torch.channels_last)


def theirs(model: str, side: int) -> Detector:
    """The detector of `transformers`."""
    shape = {"detr": PUBLISHED, "deformable": PUBLISHED_DEFORMABLE}[model]
    return HuggingFace(replace(shape, image_size=side), NAMES, pretrained=False)


def work(pipe: Connection, side: str, model: str, a: argparse.Namespace) -> None:
    """One side: on each request a step, and its seconds; at the end, the peak of its memory in GiB."""
    torch.manual_seed(0)
    device = "cuda" if a.cuda else "cpu"
    batch = drawn(a.batch, a.image_size).to(device)
    if side == "ours":
        keep_memory()
    detector = {"ours": ours, "theirs": theirs}[side](model, a.image_size).to(device).train()
    optimizer = make_optimizer(detector, OPTIM)
    if side == "theirs":
        groups = [{name: group[name] for name in ("params", "weight_decay")} for group in optimizer.param_groups]
        optimizer = torch.optim.AdamW(groups, lr=OPTIM.lr, fused=True)
    while pipe.recv():
        pipe.send(timed_step(detector, optimizer, batch, a))
    peak = torch.cuda.max_memory_allocated() if a.cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    pipe.send(peak / 2**30)


def timed_step(detector: Detector, optimizer: torch.optim.Optimizer, batch: Batch, a: argparse.Namespace) -> float:
    """Seconds of one step."""
    clock = time.perf_counter if a.cuda else time.process_time
    started = clock()
    with torch.autocast(batch.images_BCHW.device.type, torch.bfloat16, enabled=a.bf16):
        losses = detector.loss(detector(batch.images_BCHW, batch.sizes_B2, batch), batch)
    torch.stack(list(losses.values())).sum().backward()
    nn.utils.clip_grad_norm_(detector.parameters(), 0.1)
    optimizer.step()
    optimizer.zero_grad()
    if a.cuda:
        torch.cuda.synchronize()
    return clock() - started


def ask(pipe: Any, go: bool) -> float:
    """The seconds of the next step, or at the end the memory."""
    pipe.send(go)
    return pipe.recv()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=("detr", "deformable"), default=["detr", "deformable"])
    for name, value in {"batch": 2, "image-size": 480, "steps": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--cuda", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    a = parser.parse_args()
    package()
    precision = "bf16 mixed precision" if a.bf16 else "full precision"
    print(
        f"batch {a.batch}, {a.image_size} px, {precision}, {torch.get_num_threads()} threads, median of {a.steps} steps"
    )
    spawn = multiprocessing.get_context("spawn")
    for model in a.models:
        pipes, processes = {}, []
        for side in ("theirs", "ours"):
            pipes[side], end = spawn.Pipe()
            processes.append(spawn.Process(target=work, args=(end, side, model, a), daemon=True))
            processes[-1].start()
            end.close()
        turns = [{side: ask(pipe, True) for side, pipe in pipes.items()} for _ in range(a.steps + 2)][2:]
        medians = {side: statistics.median(turn[side] for turn in turns) for side in pipes}
        for side, name in {"theirs": "of Hugging Face", "ours": "ours"}.items():
            rate, ratio = a.batch / medians[side], medians["theirs"] / medians[side]
            print(f"{model:<10} {name:<16} {rate:7.3f} images/s   {ratio:.2f} x   {ask(pipes[side], False):.2f} GiB")
        for process in processes:
            process.join()


if __name__ == "__main__":
    main()

"""How fast `dense` nano is beside the smallest YOLOs: exported, on one CPU thread, and a training step.

    python -m venv PEERS && PEERS/bin/pip install ultralytics onnx
    python benchmarks/peers_latency.py --peers-python PEERS/bin/python [--peers yolo11n yolo26n] [--repeats 25]

Ours, in fp32 and int8, goes from an image of 640 x 480 bytes to boxes; theirs is the network alone, from a canvas of
floats to raw boxes, without resizing and, for yolo11n, without NMS. Untrained, as weights change no time. The files
take turns, and CPU times are compared, so that other work on the machine matters little; the median counts. A training
step is forward pass, loss, backward pass and optimizer on 16 images of 12 objects; ours leaves the stem of the backbone
as it is, as its recipe does. GFLOP: a multiplication and an addition count as two. Prints a Markdown table.
"""

import argparse
import json
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import torch
from ablation import BCCD, Table
from sequence_latency import in_turns
from torch.utils.flop_counter import FlopCounterMode
from training_step import synthetic

from boxwright.data.read import read
from boxwright.deployment.onnx.onnx_file import save, to_onnx
from boxwright.deployment.onnx.quantise import to_int8
from boxwright.images import open_image
from boxwright.models.dense import SIZES, Dense
from boxwright.runtime import Detector
from boxwright.training.fabric import keep_memory
from boxwright.training.optim import make_optimizer
from boxwright.training.recipes import recipe

CALIBRATION, STEPS, BATCH = 16, 3, 16


class Row(NamedTuple):
    """A file's name, how to run it, GFLOP, and images per second of a training step."""

    name: str
    run: Callable[[], Any]
    gflop: float
    images_per_second: float | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers-python", type=Path)
    parser.add_argument("--peers", nargs="+", default=["yolo11n", "yolo26n"])
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--write", type=Path)
    a = parser.parse_args()
    keep_memory()
    torch.set_num_threads(1)
    side = SIZES["nano"].image_size
    with TemporaryDirectory() as folder:
        rows = ours(Path(folder), side)
        if a.peers_python:
            rows += [theirs(name, a.peers_python, Path(folder), side) for name in a.peers]
        taken = in_turns([row.run for row in rows], a.repeats)
    table = Table(
        f"{side} px, one CPU thread", "network", "ms", "times dense", "GFLOP", "training, images/s", "times dense"
    )
    for row, ms in zip(rows, taken, strict=True):
        speed, first = row.images_per_second, rows[0].images_per_second
        training = (f"{speed:.1f}", f"{speed / first:.2f}") if speed and first else ("", "")
        table.add(row.name, f"{ms:.1f}", f"{ms / taken[0]:.2f}", f"{row.gflop:.2f}", *training)
    table.append_to(a.write)


def ours(folder: Path, side: int) -> list[Row]:
    """`dense` nano in fp32 and in int8."""
    torch.manual_seed(0)
    detector = Dense(SIZES["nano"], ("a", "b", "c"))
    speed = training_speed(detector, side)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        detector.eval()(torch.rand(1, 3, side, side), torch.tensor([[side, side]]))
    gflop = counter.get_total_flops() / 1e9
    fp32 = to_onnx(detector)
    images = (np.asarray(open_image(record.path)) for record in read(BCCD).splits["train"][:CALIBRATION])
    image_1HW3 = np.random.default_rng(0).integers(0, 255, (1, 480, 640, 3), dtype=np.uint8)
    rows = []
    for name, model in {"fp32": fp32, "int8": to_int8(fp32, images, detector.fp32_modules)}.items():
        save(model, file := folder / f"{name}.onnx")
        run = partial(Detector(file, "cpu", threads=1).run, image_1HW3)
        rows.append(Row(f"dense nano, {name}, image to boxes", run, gflop, speed if name == "fp32" else None))
    return rows


def training_speed(detector: Dense, side: int) -> float:
    """Images per second of the fastest of some steps."""
    detector.to(memory_format=torch.channels_last).train()
    optimizer, batch, taken = make_optimizer(detector, recipe("dense").optim), synthetic(BATCH, side), []
    for _ in range(STEPS):
        started = time.process_time()
        sum(detector.loss(detector(batch.images_BCHW, batch.sizes_B2, batch), batch).values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        taken.append(time.process_time() - started)
    return BATCH / min(taken)


def theirs(name: str, python: Path, folder: Path, side: int) -> Row:
    """A YOLO, exported and measured by the other environment."""
    script = Path(__file__).with_name("ultralytics_export.py").resolve()
    command = [python, script, name, folder, "--image-size", str(side), "--steps", str(STEPS), "--batch", str(BATCH)]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    measured = json.loads((folder / f"{name}.json").read_text())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
    canvas = np.random.default_rng(0).random((1, 3, side, side), dtype=np.float32)
    run = partial(session.run, None, {session.get_inputs()[0].name: canvas})
    return Row(f"{name}, network alone", run, measured["gflop"], measured["images_per_second"])


if __name__ == "__main__":
    main()

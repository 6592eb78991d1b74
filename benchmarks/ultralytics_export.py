"""Export an untrained YOLO of Ultralytics and time its training step, in an environment of its own; nothing is loaded.

    PYTHON benchmarks/ultralytics_export.py yolo11n FOLDER [--image-size 320] [--steps 3] [--batch 16]

PYTHON is an environment with `pip install ultralytics onnx` (AGPL-3.0, which is why it is not one of ours). Writes
FOLDER/yolo11n.onnx, from a canvas to raw boxes, and FOLDER/yolo11n.json: GFLOP of an image (a multiplication and an
addition count as two) and images per second of a training step on one thread. `peers_latency.py` calls it.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode
from ultralytics import YOLO
from ultralytics.cfg import get_cfg

OBJECTS = 12  # of an image, as in BCCD


def images_per_second(name: str, batch_size: int, side: int, steps: int) -> float:
    """Of forward pass, loss, backward pass and SGD, every weight trained; the fastest step counts."""
    network = YOLO(f"{name}.yaml").model.train()
    network.args = get_cfg()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    count = batch_size * OBJECTS
    batch = {
        "img": torch.rand(batch_size, 3, side, side),
        "cls": torch.randint(0, 3, (count, 1)).float(),
        "bboxes": 0.2 + 0.5 * torch.rand(count, 4),
        "batch_idx": torch.arange(batch_size).repeat_interleave(OBJECTS).float(),
    }
    taken = []
    for _ in range(steps):
        started = time.process_time()
        network(batch)[0].sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        taken.append(time.process_time() - started)
    return batch_size / min(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    a = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        YOLO(f"{a.name}.yaml").model.eval()(torch.rand(1, 3, a.image_size, a.image_size))
    measured = {
        "gflop": counter.get_total_flops() / 1e9,
        "images_per_second": images_per_second(a.name, a.batch, a.image_size, a.steps),
    }
    file = YOLO(f"{a.name}.yaml").export(format="onnx", imgsz=a.image_size)
    Path(file).rename(a.folder / f"{a.name}.onnx")
    (a.folder / f"{a.name}.json").write_text(json.dumps(measured))


if __name__ == "__main__":
    main()

"""Short runs of a tiny detector, and the data they train on."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import boxwright

SETTINGS = {"backbone": "test_efficientnet", "pretrained": False, "image_size": 64, "batch_size": 4, "device": "cpu"}
COMMON = [f"--{name}={str(value).lower()}" for name, value in SETTINGS.items()]
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def squares_and_discs(root: Path, train: int = 16, val: int = 8) -> Path:
    """Images of white squares and yellow discs in COCO form, so many to train on, and to validate on."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        images, annotations = [], []
        for number in range(1, count + 1):
            canvas = Image.new("RGB", (64, 48), (30, 60, 40))
            for _ in range(int(random.integers(1, 4))):
                label, side = int(random.integers(0, 2)), int(random.integers(10, 20))
                x, y = int(random.integers(0, 64 - side)), int(random.integers(0, 48 - side))
                draw, place = ImageDraw.Draw(canvas), (x, y, x + side - 1, y + side - 1)
                (draw.rectangle, draw.ellipse)[label](place, fill=("white", "yellow")[label])
                row = {"id": len(annotations) + 1, "image_id": number, "category_id": label + 1}
                annotations.append(row | {"bbox": [x, y, side, side], "area": side * side, "iscrowd": 0})
            (root / split).mkdir(exist_ok=True)
            canvas.save(root / split / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 48})
        categories = [{"id": 1, "name": "square"}, {"id": 2, "name": "disc"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def rows(run: Path) -> list[dict[str, str]]:
    """The lines of a run's metrics.csv."""
    with (run / "metrics.csv").open() as stream:
        return list(csv.DictReader(stream))


def start(data: Path, out: Path, *more: str) -> subprocess.Popen:
    """A run in a process of its own."""
    command = [sys.executable, "-m", "boxwright", "train", str(data), "--out", str(out), *COMMON, *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_rows(process: subprocess.Popen, out: Path, count: int) -> None:
    """Until metrics.csv has so many rows; a process that ends before fails the test with its output."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if (out / "metrics.csv").is_file() and len(rows(out)) >= count:
            return
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    raise AssertionError("no progress")


def train(data: Path, out: Path, **more) -> Path:
    """Two epochs, or as said."""
    return boxwright.train(data, out=out, **SETTINGS | {"epochs": 2} | more)

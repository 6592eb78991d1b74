"""Small image files and records made on the spot."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from boxwright.data.records import Record


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours with some noise, so that JPEG and resizing keep what they keep in photographs."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((smooth + random.integers(-8, 9, (height, width, 3))).clip(0, 255).astype(np.uint8))


def record(path: Path, boxes: Sequence[Sequence[float]] = (), ignore: Sequence[bool] | None = None) -> Record:
    """The record of an image file; labels 0, 1, 2... in turn."""
    with Image.open(path) as image:
        width, height = image.size
    boxes_N4 = np.array(boxes, np.float64).reshape(-1, 4)
    ignore_N = np.zeros(len(boxes_N4), bool) if ignore is None else np.array(ignore)
    return Record(path, width, height, boxes_N4, np.arange(len(boxes_N4)) % 3, ignore_N, 1, "made here")


def records(folder: Path, count: int) -> list[Record]:
    """`count` PNG images of different shapes, the first without objects, then one, two, ... up to three objects."""
    found = []
    for i in range(count):
        path = folder / f"{i}.png"
        noise(40 + 7 * (i % 5), 30 + 11 * (i % 4), seed=i).save(path)
        found.append(record(path, [[3 + j, 2 + i % 7, 20 + j, 25] for j in range(i % 4)]))
    return found

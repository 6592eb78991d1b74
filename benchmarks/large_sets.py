"""CPU time and peak memory of `check`, its page and training's set-up on large synthetic data sets, in processes.

    python benchmarks/large_sets.py                                       # COCO's size: 118,000 images, 847,000 boxes
    python benchmarks/large_sets.py --images 2000000 --boxes 30000000 --classes 365 --shared true   # that of Objects365
    python benchmarks/large_sets.py --images 1 --boxes 20000                              # a crowd on a single image
    python benchmarks/large_sets.py --what set_up --cache none --folder SET               # a set that was kept

A set is a COCO file a split, 19 images of 20 in `train`, and small JPEG files, each of another picture or, with
`--shared`, links to a few files. Training's set-up is all that happens before the first step but making the detector:
reading, the checksums that `--resume` compares, the cache, and the first batch.
"""

import contextlib
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from jsonargparse import auto_cli
from PIL import Image

SIDE = 64
LINKS = 30_000  # to one file; file systems have a limit
CHUNK = 100_000  # annotations made at once
BATCH = 16


def main(
    images: int = 118_000,
    boxes: int = 847_000,
    classes: int = 80,
    shared: bool = False,
    what: Literal["all", "check", "page", "set_up"] = "all",
    cache: str = "pixels",
    canvas: int = 32,
    folder: Path | None = None,
) -> None:
    """Print CPU seconds and peak memory of each command.

    Args:
        images: number of images, in both splits.
        boxes: number of boxes, spread evenly but for chance.
        classes: number of classes.
        shared: let many image files share their bytes.
        what: the commands to measure; `page` is `check` with a page of pictures, and takes longest.
        cache: as in `train`; `none` measures without a cache and a batch.
        canvas: side of the cached images, in pixels.
        folder: keep the set there, or use the one that is there; by default it is temporary.
    """
    with tempfile.TemporaryDirectory() as temporary:
        data = folder or Path(temporary) / "data"
        if not data.exists():
            write_set(data, images, boxes, classes, shared)
        for command in ("check", "page", "set_up") if what == "all" else (what,):
            order = [sys.executable, __file__, "--child", command, str(data), cache, str(canvas)]
            environment = {**os.environ, "BOXWRIGHT_CACHE": str(Path(temporary) / "cache"), "OMP_NUM_THREADS": "1"}
            done = subprocess.run(order, check=True, capture_output=True, text=True, env=environment)
            print(f"{command}: {done.stdout.splitlines()[-1]}", flush=True)


def write_set(data: Path, images: int, boxes: int, classes: int, shared: bool) -> None:
    """Write the images and annotations of both splits."""
    generator = np.random.default_rng(0)
    held_out = images // 20
    for split, first, count in (("train", 0, images - held_out), ("val", images - held_out, held_out)):
        if count:
            _write_images(data / split, first, count, shared)
            _write_annotations(data, split, first, count, boxes * count // images, classes, generator)


def _write_images(folder: Path, first: int, count: int, shared: bool) -> None:
    folder.mkdir(parents=True)
    for number in range(first, first + count):
        file = folder / f"{number:012d}.jpg"
        if shared and (number - first) % LINKS:
            os.link(folder / f"{number - (number - first) % LINKS:012d}.jpg", file)
            continue
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)  # no two look alike
        Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.NEAREST).save(file, quality=85)


def _write_annotations(
    data: Path, split: str, first: int, count: int, boxes: int, classes: int, generator: np.random.Generator
) -> None:
    (data / "annotations").mkdir(exist_ok=True)
    with (data / "annotations" / f"instances_{split}.json").open("w") as file:
        names = [{"id": k, "name": f"class {k}"} for k in range(1, classes + 1)]
        file.write(f'{{"categories": {json.dumps(names)}, "images": [')
        for i in range(first, first + count):
            row = f'{{"id": {i}, "file_name": "{i:012d}.jpg", "width": {SIDE}, "height": {SIDE}}}'
            file.write(f"{',' * (i > first)}\n{row}")
        file.write('], "annotations": [')
        for start in range(0, boxes, CHUNK):
            rows = _annotations(start + 1, min(CHUNK, boxes - start), first, count, classes, generator)
            file.write(f"{',' * (start > 0)}\n" + ",\n".join(rows))
        file.write("]}")


def _annotations(
    number: int, boxes: int, first: int, count: int, classes: int, generator: np.random.Generator
) -> Iterator[str]:
    """Records of boxes, each on any of the images: as in COCO's own files, those of an image lie apart."""
    images = generator.integers(first, first + count, boxes).tolist()
    corners = generator.uniform(0, 0.7 * SIDE, (boxes, 2)).round(2).tolist()
    sizes = generator.uniform(4, 0.3 * SIDE, (boxes, 2)).round(2).tolist()
    labels = generator.integers(1, classes + 1, boxes).tolist()
    for i, (image, (x, y), (width, height), label) in enumerate(zip(images, corners, sizes, labels, strict=True)):
        yield (
            f'{{"id": {number + i}, "image_id": {image}, "category_id": {label}, "bbox": [{x}, {y}, {width}, {height}]'
            f', "area": {width * height}, "iscrowd": 0}}'
        )


def child(command: str, data: str, cache: str, canvas: str) -> None:
    """Run one command and print what it took."""
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as out:
        if command in ("check", "page"):
            from boxwright.__main__ import main as boxwright

            boxwright(["check", data, *([f"--out={out}/page.html"] if command == "page" else [])])
        else:
            set_up(Path(data), cache, int(canvas))
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu, peak = used.ru_utime + used.ru_stime, used.ru_maxrss / 1000
    print(f"{cpu:.1f} s of CPU, {time.perf_counter() - start:.1f} s, {peak:,.0f} MB at most")


def set_up(data: Path, cache: str, canvas: int) -> None:
    """Read, compare, cache, and make the first batch, as `boxwright.training.run` does before its first step."""
    from boxwright.config import Augment
    from boxwright.data.cache import build
    from boxwright.data.loader import train_batches
    from boxwright.training.begin import read_data
    from boxwright.training.config import RunConfig
    from boxwright.training.identity import RunIdentity, checksums_of_data

    config = RunConfig(data)
    names, *parts = read_data(config)
    caches = [None if cache == "none" else build(part, canvas, mode=cache) for part in parts]
    pairs = [(cached, part) for cached, part in zip(caches, parts, strict=True) if cached is not None]
    checksums = checksums_of_data(*pairs, names) if pairs else {}
    assert RunIdentity({"optim": {}}, names, parts[0], checksums).recipe
    if pairs:
        next(train_batches(pairs[0][0], BATCH, Augment(), seed=0, epoch=0))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        auto_cli(main)

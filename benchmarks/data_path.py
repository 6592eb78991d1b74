"""Images per second that reach a training step: our cache and batch augmentation, and torchvision's usual path.

    python benchmarks/data_path.py DATA [--side 256 --batch 16 --write]

DATA is a COCO folder with `annotations.json` and `images/` (or what `--annotations` and `--images` name). Both paths
give batches of the same canvas: float images in [0, 1], scaled by 0.3 to 2.0, cropped, flipped, coloured, with their
boxes clipped and the empty ones dropped. They run in turns, three times; the median of each counts. Building the cache
(once for a data set) is timed on its own. torchvision's path ends with lists of targets; the time to pad them into
tensors, which a detector needs, is not added to it.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
import torchvision
from torch.utils.data import DataLoader
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.transforms import v2

from boxwright.config import Augment
from boxwright.data.cache import Cache, build
from boxwright.data.loader import train_batches
from boxwright.data.read import read

SCALE, FLIP, COLOUR = (0.3, 2.0), 0.5, 0.3
ROUNDS = 3


def torchvision_loader(images: Path, annotations: Path, side: int, batch: int, workers: int) -> DataLoader:
    """CocoDetection and transforms.v2 as torchvision's detection reference has them, at this canvas."""
    transform = v2.Compose(
        [
            v2.ToImage(),
            v2.ScaleJitter((side, side), SCALE),
            v2.RandomCrop((side, side), pad_if_needed=True),
            v2.RandomHorizontalFlip(FLIP),
            v2.ColorJitter(COLOUR, COLOUR, COLOUR),
            v2.ToDtype(torch.float32, scale=True),
            v2.SanitizeBoundingBoxes(),
        ]
    )
    plain = CocoDetection(str(images), str(annotations), transforms=transform)
    data = wrap_dataset_for_transforms_v2(plain, target_keys=["boxes", "labels"])
    keep = [i for i, image in enumerate(plain.ids) if plain.coco.getAnnIds(image)]  # it needs at least one object
    return DataLoader(
        torch.utils.data.Subset(data, keep),
        batch,
        shuffle=True,
        num_workers=workers,
        collate_fn=collate,
        drop_last=True,
        persistent_workers=workers > 0,
    )


def collate(rows: list) -> tuple:
    images, targets = zip(*rows, strict=True)
    return torch.stack(images), targets


def forever(loader: DataLoader) -> Iterator[int]:
    while True:
        for images, _ in loader:
            yield len(images)


def ours(cache: Cache, batch: int) -> Iterator[int]:
    settings = Augment(scale=SCALE, flip=FLIP, colour=COLOUR, min_visible=0.25, views=1)
    epoch = 0
    while True:
        for images in train_batches(cache, batch, settings, seed=0, epoch=epoch):
            yield len(images)
        epoch += 1


def rate(counts: Iterable[int], seconds: float) -> float:
    """Images per second over this time, without the first batches, which start workers and fill queues."""
    iterator = iter(counts)
    for _ in range(6):
        next(iterator)
    images, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        images += next(iterator)
    return images / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--annotations", default="annotations.json")
    parser.add_argument("--images", default="images")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2, help="of the DataLoader")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measurement")
    parser.add_argument("--write", action="store_true", help="keep the result in benchmarks/results/data_path.md")
    args = parser.parse_args()

    records = [record for split in read(args.data).splits.values() for record in split]
    folder = Path(tempfile.mkdtemp(prefix="boxwright-bench-"))
    try:
        start = time.perf_counter()
        cache = build(records, args.side, mode="pixels", folder=folder)
        built = time.perf_counter() - start
        theirs = forever(
            torchvision_loader(
                args.data / args.images, args.data / args.annotations, args.side, args.batch, args.workers
            )
        )
        rounds = [(rate(theirs, args.seconds), rate(ours(cache, args.batch), args.seconds)) for _ in range(ROUNDS)]
    finally:
        shutil.rmtree(folder)
    slow, fast = (statistics.median(column) for column in zip(*rounds, strict=True))
    report = "\n".join(
        [
            f"{datetime.date.today()}, {len(records)} images of {args.data.name}, canvas {args.side}, "
            f"batch {args.batch}, {os.cpu_count()} CPU cores ({platform.machine()}), torch {torch.__version__}, "
            f"torchvision {torchvision.__version__}",
            "",
            "| path | images/s, median of three | each |",
            "| --- | --- | --- |",
            f"| torchvision, {args.workers} workers | {slow:,.0f} | {', '.join(f'{a:,.0f}' for a, _ in rounds)} |",
            f"| boxwright, cached | {fast:,.0f} | {', '.join(f'{b:,.0f}' for _, b in rounds)} |",
            "",
            f"Ratio: {fast / slow:.1f}. Building the cache, once: {built:.1f} s.",
        ]
    )
    print(report)
    if args.write:
        command = (
            f"python benchmarks/data_path.py DATA --side {args.side} --batch {args.batch} --workers {args.workers}"
        )
        path = Path(__file__).parent / "results" / "data_path.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"# Images per second into a training step\n\n`{command}`\n\n{report}\n")


if __name__ == "__main__":
    main()

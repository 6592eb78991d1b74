"""Training from shards, in numbers: images per second, memory, and the time until the first step.

    python benchmarks/shards.py rate                  # beside the memory-mapped cache, canvas of 256 pixels
    python benchmarks/shards.py turns                 # the cache and kept pixels, epoch by epoch in one process
    python benchmarks/shards.py memory                # of a process, over sets of 10,000, 100,000 and 1 million images
    python benchmarks/shards.py first-step            # of 2 million images with 30 million boxes
    python benchmarks/shards.py writing               # memory and time of `boxwright shard`

Images are synthetic: blurred noise of 640 x 480 pixels, JPEG at quality 90, about 90 kB, seeded. Large sets repeat
shards: one is written, the others are hard links to it, and the index has a row for every image, as of a set of that
size. So memory and times of the index are those of such a set; the disk holds the images in its cache, which flatters
how fast they are read. Every measurement is a process of its own, which prints its peak of resident memory, files that
it maps included. The first step is that of `boxwright train` for `dense` nano on the CPU, with all that comes before.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal

import numpy as np
from jsonargparse import auto_cli
from PIL import Image, ImageFilter

SIDE, BATCH = 256, 16
PER_SHARD = 1_000
BOXES = 15  # an image, as Objects365 has them


def main(
    what: Literal["rate", "turns", "memory", "first-step", "writing"],
    images: int = 0,
    photos: int = 512,
    rounds: int = 3,
) -> None:
    """Measure one thing.

    Args:
        what: to measure.
        images: of the set; by default those above.
        photos: different images to measure the rate with.
        rounds: of the rate, or epochs of each side that take turns; the median counts.
    """
    with tempfile.TemporaryDirectory(prefix="boxwright-shards-") as place:
        folder = Path(place)
        if what == "rate":
            _rate(folder, images or photos, rounds)
        elif what == "turns":
            source, shards = both_sets(folder, images or photos)
            print(child(folder, TURNS, str(source), str(shards), str(SIDE), str(BATCH), str(rounds)))
        elif what == "memory":
            for count in [images] if images else [10_000, 100_000, 1_000_000]:
                shards = large_set(folder / str(count), count)
                print(f"{count:,} images:", child(folder, READ, str(shards)))
        elif what == "first-step":
            shards, val = large_set(folder / "large", images or 2_000_000), small_set(folder / "val", 16)
            print(f"{images or 2_000_000:,} images:", child(folder, TRAIN, str(shards), str(val), str(folder / "run")))
        else:
            for count in [images] if images else [1_000, 4_000, 16_000]:
                source = small_set(folder / f"source-{count}", count, side=96)
                print(f"{count:,} images:", child(folder, WRITE, str(source), str(folder / f"out-{count}")))


RATE = """
import itertools, sys, time
from boxwright.config import Augment
from boxwright.data.cache import build, open_batches
from boxwright.data.loader import train_batches
from boxwright.data.read import read
kind, data, side, batch = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
records = next(iter(read(data).splits.values()))
started = time.perf_counter()
if kind in ("pixels", "jpeg"):
    source = build(records, side, mode=kind, quiet=True)
else:
    source = open_batches(records, side, mode="jpeg" if kind == "decoded" else "auto", quiet=True)
ready = time.perf_counter() - started
settings, rates = Augment(scale=(0.3, 2.0), flip=0.5, colour=0.3, min_visible=0.25, views=1), []
for epoch in range(int(sys.argv[5])):
    started = time.perf_counter(), time.process_time()
    seen = sum(len(each) for each in train_batches(source, batch, settings, seed=0, epoch=epoch))
    rates.append((seen / (time.perf_counter() - started[0]), (time.process_time() - started[1]) / seen * 1e3))
print(f"{ready:.1f} s before; images/s and CPU ms an image of each epoch:", *(f"{a:.0f} ({b:.1f})" for a, b in rates))
"""

TURNS = """
import statistics, sys, time
from boxwright.config import Augment
from boxwright.data.cache import open_batches
from boxwright.data.loader import train_batches
from boxwright.data.read import read
side, batch, rounds = map(int, sys.argv[3:])
settings = Augment(scale=(0.3, 2.0), flip=0.5, colour=0.3, min_visible=0.25, views=1)
sources = [open_batches(read(data).splits["train"], side, quiet=True) for data in sys.argv[1:3]]
def epoch(source, number):
    started = time.perf_counter(), time.process_time()
    seen = sum(len(each) for each in train_batches(source, batch, settings, seed=0, epoch=number))
    return (time.perf_counter() - started[0]) / seen * 1e3, (time.process_time() - started[1]) / seen * 1e3
for number in range(2):  # images are decoded, then compared with their checksums
    [epoch(source, number) for source in sources]
taken = [[epoch(source, number) for source in sources] for number in range(2, rounds + 2)]
for name, epochs in zip(("cache", "kept"), zip(*taken)):
    wall, cpu = zip(*epochs)
    print(f"{name}: {statistics.median(cpu):.2f} CPU ms an image ({min(cpu):.2f} to {max(cpu):.2f}),")
    print(f"{statistics.median(wall):.2f} ms by the clock;")
"""

READ = """
import sys, time
from boxwright.config import Augment
from boxwright.data.cache import open_batches
from boxwright.data.loader import train_batches
from boxwright.data.read import read
started = time.perf_counter()
source = open_batches(read(sys.argv[1]).splits["train"], 256, mode="jpeg", quiet=True)
batches = train_batches(source, 16, Augment(views=1), seed=0, epoch=0)
next(batches)
print(f"first batch after {time.perf_counter() - started:.1f} s", end=", ")
for number, batch in enumerate(batches):
    if number in (50, 300):
        held = int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6
        print(f"{held:.0f} MB after {number} batches", end=", ")
    if number == 300:
        break
"""

WRITE = """
import sys, time
from boxwright.data.shards.write import shard
started = time.process_time()
shard(sys.argv[1], sys.argv[2], "16MB")
print(f"{time.process_time() - started:.1f} CPU s", end=", ")
"""


TRAIN = """
import sys, time
import boxwright.training.run
from boxwright.__main__ import main
from boxwright.training.run_logger import RunLogger
begun = time.perf_counter(), time.process_time()
def stop(self, step, *_):
    wall, cpu = time.perf_counter() - begun[0], time.process_time() - begun[1]
    print(f"imports {begun[1]:.1f} s of CPU; from there to the end of the first step {cpu:.1f} s of CPU ({wall:.1f} s)")
    raise KeyboardInterrupt
RunLogger.step = stop
main(["train", sys.argv[1], "--val_data", sys.argv[2], "--out", sys.argv[3], "--device", "cpu", "--pretrained", "false",
      "--batch_size", "4", "--epochs", "1", "--cache", "jpeg"])
"""


def child(folder: Path, code: str, *arguments: str) -> str:
    """What a process prints, and its peak of memory."""
    # not `ru_maxrss`, which is at least the memory of the process that started this one
    peak = "print('peak', int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) // 1000, 'MB')"
    environment = os.environ | {"BOXWRIGHT_CACHE": str(folder / "cache")}
    command = [sys.executable, "-c", f"{code}\n{peak}", *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return " ".join(done.stdout.split())


def _rate(folder: Path, images: int, rounds: int) -> None:
    source, shards = both_sets(folder, images)
    for _ in range(rounds):
        for kind, data in (("pixels", source), ("kept", shards), ("decoded", shards), ("jpeg", source)):
            print(f"{kind}:", child(folder, RATE, kind, str(data), str(SIDE), str(BATCH), "3"), flush=True)


def both_sets(folder: Path, images: int) -> tuple[Path, Path]:
    """A COCO set, and the same in shards."""
    source, shards = small_set(folder / "source", images), folder / "shards"
    subprocess.run([sys.executable, "-m", "boxwright", "shard", str(source), str(shards), "--size", "16MB"], check=True)
    return source, shards


def photo(random: np.random.Generator, width: int = 640, height: int = 480) -> Image.Image:
    """Blurred noise, which JPEG compresses about as it does photographs."""
    coarse = Image.fromarray(random.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8))
    fine = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).filter(
        ImageFilter.GaussianBlur(1)
    )
    return Image.blend(coarse.resize((width, height), Image.Resampling.BICUBIC), fine, 0.4)


def small_set(folder: Path, images: int, side: int | None = None) -> Path:
    """A COCO set of different images in the split `train`, or small ones of this width."""
    random, (width, height) = np.random.default_rng(0), (640, 480) if side is None else (side, side * 3 // 4)
    (folder / "train").mkdir(parents=True)
    (folder / "annotations").mkdir()
    corners = random.uniform(0, 0.5, (images, BOXES, 2)) * (width, height)
    extents = random.uniform(0.1, 0.4, (images, BOXES, 2)) * (width, height)
    labels = random.integers(1, 366, (images, BOXES))
    rows, annotations = [], []
    for n in range(images):
        photo(random, width, height).save(folder / "train" / f"{n:08d}.jpg", quality=90)
        rows.append({"id": n + 1, "file_name": f"{n:08d}.jpg", "width": width, "height": height})
        for k in range(BOXES):
            box = [*corners[n, k].round(2).tolist(), *extents[n, k].round(2).tolist()]
            annotations.append(
                {"id": n * BOXES + k + 1, "image_id": n + 1, "category_id": int(labels[n, k]), "bbox": box}
            )
    categories = [{"id": number, "name": f"class {number}"} for number in range(1, 366)]
    content = {"images": rows, "annotations": annotations, "categories": categories}
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(content))
    return folder


def large_set(folder: Path, images: int) -> Path:
    """Shards of so many images: one is real, with small images, the others are links to it."""
    from boxwright.data.shards.columns import ColumnWriter
    from boxwright.data.shards.index import COLUMNS, crc32_of, read_index, write_about
    from boxwright.data.shards.write import shard

    source = small_set(folder / "source", PER_SHARD, side=96)
    shard(source, folder / "one", "1GB")
    one, out, times = read_index(folder / "one").splits["train"], folder / "shards", images // PER_SHARD
    (out / "index/train").mkdir(parents=True)
    for n in range(times):
        os.link(folder / "one/train-00000.tar", out / f"train-{n:05d}.tar")
    about = json.loads((folder / "one/shards.json").read_text())
    split = about["splits"]["train"]
    split["images"], split["shards"] = images, [[f"train-{n:05d}.tar", *split["shards"][0][1:]] for n in range(times)]
    for name, (dtype, row) in COLUMNS.items():
        file = out / "index/train" / f"{name}.npy"
        writer, rows = ColumnWriter(file, dtype, row), one.columns[name].all()
        counts = name in ("starts", "text_starts")
        for n in range(times):
            writer.append(rows[:-1] + n * rows[-1] if counts else rows)
        writer.append([times * rows[-1]] if counts else [])
        writer.close()
        split["columns"][name] = [f"index/train/{name}.npy", file.stat().st_size, crc32_of(file)]
    write_about(out / "shards.json", {key: value for key, value in about.items() if key != "checksum"})
    return out


if __name__ == "__main__":
    auto_cli(main, as_positional=True)
    print(f"peak of this script: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB")

"""Compare formats of shards: images per second, exactness over four processes, and resuming on other workers.

    python -m pip install litdata webdataset mosaicml-streaming   # in an environment of its own: the last pins others
    python benchmarks/shard_formats.py [--images 512]

Every library stores the same JPEGs of 640 x 480 (`benchmarks/shards.py` makes them), reads them in its own shuffled
order with two DataLoader workers (boxwright: two threads), and the same code decodes and fits them to 256 pixels.

- `once`: four processes read an epoch; how many images are read, and how many of them are different.
- `resumed`: an epoch is stopped after a quarter, its state is loaded on another number of workers, and the rest read;
  whether the images after the stop are exactly those that the whole epoch had there.

What a library can't do, or a failure, is printed as such.
"""

import importlib.metadata
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from jsonargparse import auto_cli

LIBRARIES = ("boxwright", "litdata", "webdataset", "streaming")

COMMON = """
import io, json, os, sys, time
import numpy as np
from PIL import Image
def decode(data):
    from boxwright.images import fit, upright
    return fit(upright(Image.open(io.BytesIO(data)), 256), 256)[0]
folder, rank, world, workers, action = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(world))
def report(batches):
    started, cpu, seen = time.perf_counter(), time.process_time(), []
    for ids in batches:
        seen += [int(i) for i in ids]
    print(json.dumps({"seen": seen, "seconds": time.perf_counter() - started}))
"""

READERS = {
    "boxwright": """
import boxwright.data.loader as loader
from boxwright.config import Augment
from boxwright.data.cache import open_batches
from boxwright.data.read import read
loader.THREADS = workers
source = open_batches(next(iter(read(folder).splits.values())), 256, mode="jpeg", quiet=True)
steps = loader.steps_per_epoch(len(source), 16, world)
first = {"whole": 0, "stop": 0, "rest": steps // 4}[action]
batches = loader.train_batches(source, 16, Augment(views=1), seed=0, epoch=0, first=first, rank=rank, world=world)
report(b.index_B.tolist() for b in batches)
""",
    "litdata": """
import torch
from litdata import StreamingDataLoader, StreamingDataset
class Images(StreamingDataset):
    def __getitem__(self, index):
        item = super().__getitem__(index)
        return decode(item["image"]), item["id"]
if __name__ == "__main__":
    if world > 1:
        torch.distributed.init_process_group("gloo", init_method="tcp://127.0.0.1:29511", rank=rank,
                                             world_size=world)
    data = Images(folder, shuffle=True, seed=0, drop_last=False)
    loader = StreamingDataLoader(data, batch_size=16, num_workers=workers, shuffle=True, drop_last=False)
    if action == "rest":
        loader.load_state_dict(json.load(open("state.json")))
    def batches():
        for n, (images, ids) in enumerate(loader):
            yield ids.tolist()
            if action == "stop" and n + 1 == len(loader) // 4:
                json.dump(loader.state_dict(), open("state.json", "w"))
                return
    report(batches())
""",
    "webdataset": """
import webdataset as wds
from glob import glob
if __name__ == "__main__":
    if action != "whole":
        sys.exit("it has no state: an epoch can't be resumed")
    data = wds.WebDataset(sorted(glob(folder + "/*.tar")), shardshuffle=100, seed=0, nodesplitter=wds.split_by_node,
                          empty_check=False).shuffle(100)
    data = data.map(lambda item: (decode(item["jpg"]), int(item["__key__"]))).batched(16)
    loader = wds.WebLoader(data, batch_size=None, num_workers=workers)
    report(ids.tolist() for _, ids in loader)
""",
    "streaming": """
import torch
from streaming import StreamingDataLoader, StreamingDataset
class Images(StreamingDataset):
    def __getitem__(self, index):
        item = super().__getitem__(index)
        return decode(item["image"]), item["id"]
if __name__ == "__main__":
    if world > 1:
        torch.distributed.init_process_group("gloo", init_method="tcp://127.0.0.1:29512", rank=rank,
                                             world_size=world)
    data = Images(local=folder, shuffle=True, shuffle_seed=0, batch_size=16, num_canonical_nodes=1)
    loader = StreamingDataLoader(data, batch_size=16, num_workers=workers)
    if action == "rest":
        loader.load_state_dict(json.load(open("state.json")))
    def batches():
        for n, (images, ids) in enumerate(loader):
            yield ids.tolist()
            if action == "stop" and n + 1 == len(loader) // 4:
                json.dump(loader.state_dict(), open("state.json", "w"))
                return
    report(batches())
""",
}

WRITERS = {
    "litdata": """
import sys
from pathlib import Path
from litdata.streaming import Cache
files, cache = sorted(Path(sys.argv[1]).glob("*.jpg")), Cache(sys.argv[2], chunk_bytes="4MB")
for n, file in enumerate(files):
    cache[n] = {"image": file.read_bytes(), "id": n}
cache.done()
cache.merge()
""",
    "streaming": """
import sys
from pathlib import Path
from streaming import MDSWriter
with MDSWriter(out=sys.argv[2], columns={"image": "bytes", "id": "int"}, size_limit="4mb") as writer:
    for n, file in enumerate(sorted(Path(sys.argv[1]).glob("*.jpg"))):
        writer.write({"image": file.read_bytes(), "id": n})
""",
}


def main(images: int = 512) -> None:
    """Print a row for each library.

    Args:
        images: how many.
    """
    sys.path.insert(0, str(Path(__file__).parent))
    from shards import small_set

    with tempfile.TemporaryDirectory(prefix="boxwright-formats-") as place:
        folder = Path(place)
        source = small_set(folder / "source", images)
        command = [sys.executable, "-m", "boxwright", "shard", str(source), str(folder / "boxwright"), "--size", "4MB"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        for library, code in WRITERS.items():
            subprocess.run([sys.executable, "-c", code, str(source / "train"), str(folder / library)], check=False)
        for library in LIBRARIES:
            data = folder / ("boxwright" if library == "webdataset" else library)
            print(f"{library} {_version(library)}:", _compare(library, data, folder, images), flush=True)


def _compare(library: str, data: Path, folder: Path, images: int) -> str:
    whole = _read(library, data, folder, [0], 1, 2, "whole")
    if isinstance(whole, str):
        return whole
    rate = f"{images / whole[0]['seconds']:.0f} images/s with workers' start"
    four = _read(library, data, folder, [0, 1, 2, 3], 4, 1, "whole")
    once = four if isinstance(four, str) else _count([i for each in four for i in each["seen"]])
    stopped = _read(library, data, folder, [0], 1, 2, "stop")
    rest = stopped if isinstance(stopped, str) else _read(library, data, folder, [0], 1, 1, "rest")
    if isinstance(rest, str):
        resumed = rest
    else:
        left = rest[0]["seen"]
        exact = whole[0]["seen"][-len(left) :] == left and 0 < len(left) < images
        resumed = "exact" if exact else f"not the same: {_count(left)} read after {images // 64} batches of 16"
    return f"{rate}; once: {once}; resumed: {resumed}"


def _count(seen: list[int]) -> str:
    return f"{len(seen)} read, {len(set(seen))} different"


def _read(library: str, data: Path, folder: Path, ranks: list[int], world: int, workers: int, action: str):
    """What each process reports, or the last line of the failure of one."""
    script = folder / f"read_{library}.py"  # not the name of the library
    script.write_text(COMMON + READERS[library])
    environment = os.environ | {"BOXWRIGHT_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(data), str(rank), str(world), str(workers), action],
            cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in ranks
    ]  # fmt: skip
    found = []
    for process in processes:
        try:
            output, errors = process.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            [each.kill() for each in processes]
            return "no end after 240 s"
        if process.returncode:
            return f"fails: {(errors.strip().splitlines() or ['?'])[-1]:.120}"
        found.append(json.loads(io.StringIO(output).read().strip().splitlines()[-1]))
    return found


def _version(library: str) -> str:
    try:
        return importlib.metadata.version({"streaming": "mosaicml-streaming"}.get(library, library))
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    auto_cli(main)

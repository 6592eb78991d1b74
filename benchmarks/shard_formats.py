"""Compare formats of shards: images per second, exactness over four processes, and resuming after a kill.

    python -m pip install litdata webdataset mosaicml-streaming   # in an environment of its own: the last pins others
    python benchmarks/shard_formats.py [--images 512] [--rounds 3] [--write FILE]

Every library stores the same JPEGs of 640 x 480 (`benchmarks/shards.py` makes them) in files of 4 MB, reads them in its
own shuffled order with two DataLoader workers (boxwright: two threads), and the same code decodes and fits them to 256
pixels. boxwright also makes the targets, and passes the images through an augmentation that changes nothing.

- `images/s`: of one process, from the first batch to the last, the median of rounds in which the libraries take turns.
- `CPU ms`: an image, of the process and its workers, their start included; also the median.
- `four processes`: how many images an epoch has in them, how many of these are different, and images of each process.
- `resumed`: state is stored after a quarter of an epoch, the process killed (SIGKILL) after a half, and the state read
  by another number of workers; whether the rest has exactly the images that the whole epoch has there. With one
  process, and with four.
- `install`: packages, and their size on the disk, beyond those of `boxwright[train]`.

What a library can't do, or the last line of its failure, is printed as such.
"""

import argparse
import importlib.metadata
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from ablation import Table
from packaging.requirements import Requirement
from shards import small_set

PACKAGES = {  # of each library
    "boxwright": "s3fs",  # fsspec is there with torch
    "litdata": "litdata",
    "webdataset": "webdataset",
    "streaming": "mosaicml-streaming",
}

COMMON = """
import io, json, os, resource, signal, sys, time
import numpy as np
from PIL import Image
def decode(data):
    from boxwright.images import fit, upright
    return fit(upright(Image.open(io.BytesIO(data)), 256), 256)[0]
folder, rank, world, workers, action = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(world))
def cpu():
    kinds = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, kinds))
def report(batches, steps, store=lambda: None):
    begun, seen, started = cpu(), [], None
    for step, ids in enumerate(batches, 1):
        started = started or (time.perf_counter(), len(ids))
        seen += [int(i) for i in ids]
        if action == "stop" and step == steps // 4:
            store()
        if action == "stop" and step == steps // 2:
            os.kill(os.getpid(), signal.SIGKILL)
    seconds, first = time.perf_counter() - started[0], started[1]
    print(json.dumps({"seen": seen, "rate": (len(seen) - first) / seconds, "cpu": (cpu() - begun) / len(seen) * 1e3}))
def with_state(loader, ids):
    file = f"state-{rank}.json"
    if action == "rest":
        loader.load_state_dict(json.load(open(file)))
    report(map(ids, loader), len(loader), lambda: json.dump(loader.state_dict(), open(file, "w")))
def join():
    import torch
    if world > 1:
        place = {"init_method": "tcp://127.0.0.1:29511", "rank": rank, "world_size": world}
        torch.distributed.init_process_group("gloo", **place)
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
first = steps // 4 if action == "rest" else 0
batches = loader.train_batches(source, 16, Augment(views=1), seed=0, epoch=0, first=first, rank=rank, world=world)
report((batch.index_B.tolist() for batch in batches), steps)
""",
    "litdata": """
from litdata import StreamingDataLoader, StreamingDataset
class Images(StreamingDataset):
    def __getitem__(self, index):
        item = super().__getitem__(index)
        return decode(item["image"]), item["id"]
if __name__ == "__main__":
    join()
    data = Images(folder, shuffle=True, seed=0, drop_last=False)
    loader = StreamingDataLoader(data, batch_size=16, num_workers=workers, shuffle=True, drop_last=False)
    with_state(loader, lambda batch: batch[1].tolist())
""",
    "webdataset": """
import webdataset as wds
from glob import glob
if __name__ == "__main__":
    if action != "whole":
        sys.exit("it has no state")
    files = sorted(glob(folder + "/*.tar"))
    data = wds.WebDataset(files, shardshuffle=100, seed=0, nodesplitter=wds.split_by_node, empty_check=False)
    data = data.shuffle(100).map(lambda item: (decode(item["jpg"]), int(item["__key__"]))).batched(16)
    loader = wds.WebLoader(data, batch_size=None, num_workers=workers)
    report((ids.tolist() for _, ids in loader), 0)
""",
    "streaming": """
from streaming import StreamingDataLoader, StreamingDataset
class Images(StreamingDataset):
    def __getitem__(self, index):
        item = super().__getitem__(index)
        return decode(item["image"]), item["id"]
if __name__ == "__main__":
    join()
    data = Images(local=folder, shuffle=True, shuffle_seed=0, batch_size=16, num_canonical_nodes=1)
    with_state(StreamingDataLoader(data, batch_size=16, num_workers=workers), lambda batch: batch[1].tolist())
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", type=Path)
    a = parser.parse_args()
    title = f"{a.images} images, {a.rounds} rounds"
    table = Table(title, "library", "images/s", "CPU ms", "four processes", "resumed: one process", "four", "install")
    with tempfile.TemporaryDirectory(prefix="boxwright-formats-") as place:
        folder = Path(place)
        write_all(folder, a.images)
        readers = {library: Reader(library, folder) for library in PACKAGES}
        rounds = [{library: reader.read("whole", 1, 2) for library, reader in readers.items()} for _ in range(a.rounds)]
        for library, reader in readers.items():
            speeds = [each[library] for each in rounds]
            table.add(f"{library} {version(library)}", *reader.cells(speeds), installed(PACKAGES[library]))
    table.append_to(a.write)


def write_all(folder: Path, images: int) -> None:
    """The images in the format of each library."""
    source = small_set(folder / "source", images)
    command = [sys.executable, "-m", "boxwright", "shard", str(source), str(folder / "boxwright"), "--size", "4MB"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (folder / "webdataset").symlink_to(folder / "boxwright")
    for library, code in WRITERS.items():
        subprocess.run([sys.executable, "-c", code, str(source / "train"), str(folder / library)], check=False)


class Reader:
    """Reads with one library, in processes of their own.

    Args:
        library: of `PACKAGES`.
        folder: of the data of all libraries.
    """

    def __init__(self, library: str, folder: Path) -> None:
        self._folder, self._data = folder, folder / library
        self._script = folder / f"read_{library}.py"  # not the name of the library
        self._script.write_text(COMMON + READERS[library])

    def read(self, action: str, world: int, workers: int) -> "list[dict] | str":
        """What each process reports, nothing of those that were killed; the failure of the first that failed."""
        environment = os.environ | {"BOXWRIGHT_CACHE": str(self._folder / "cache"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(self._script), str(self._data)]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes = [
            subprocess.Popen(
                [*command, str(rank), str(world), str(workers), action], cwd=self._folder, env=environment, **streams
            )
            for rank in range(world)
        ]
        try:
            ended = [(*process.communicate(timeout=300), process.returncode) for process in processes]
        except subprocess.TimeoutExpired:
            return "no end after 300 s"
        finally:
            for process in processes:
                process.kill()
        for _, errors, code in ended:
            if code not in (0, -signal.SIGKILL):
                return f"fails: {(errors.strip().splitlines() or ['?'])[-1]:.120}"
        return [json.loads(output.splitlines()[-1]) for output, _, code in ended if code == 0]

    def cells(self, speeds: "list[list[dict] | str]") -> list[str]:
        """Cells of the table, from what the rounds reported."""
        whole = speeds[0]
        if isinstance(whole, str):
            return [whole, "", "", "", ""]
        rate, cpu = (statistics.median(each[0][key] for each in speeds) for key in ("rate", "cpu"))
        four = self.read("whole", 4, 1)
        resumed = self.resumed(whole, 2, 1), self.resumed(four, 1, 2)
        return [f"{rate:.0f}", f"{cpu:.1f}", four if isinstance(four, str) else count(four), *resumed]

    def resumed(self, whole: "list[dict] | str", before: int, after: int) -> str:
        """Whether the rest of an epoch is the same after a kill, with numbers of workers before and after it."""
        if isinstance(whole, str):
            return whole
        stopped = self.read("stop", len(whole), before)
        rest = stopped if isinstance(stopped, str) else self.read("rest", len(whole), after)
        if isinstance(rest, str):
            return rest
        same = all(0 < len(b["seen"]) < len(a["seen"]) for a, b in zip(whole, rest, strict=True))
        same &= all(a["seen"][-len(b["seen"]) :] == b["seen"] for a, b in zip(whole, rest, strict=True))
        return "exact" if same and not stopped else f"other images: {count(rest)}"


def count(processes: list[dict]) -> str:
    """How many images processes read."""
    seen = [image for process in processes for image in process["seen"]]
    return f"{len(seen)}, {len(set(seen))} different ({', '.join(str(len(each['seen'])) for each in processes)})"


def installed(package: str) -> str:
    """Packages and megabytes that a package brings beyond `boxwright[train]`."""
    more = closure(package) - closure("boxwright[train]")
    files = [file for name in more for file in importlib.metadata.files(name) or ()]
    size = sum(Path(file.locate()).stat().st_size for file in files if Path(file.locate()).is_file())
    return f"{len(more)} packages, {size / 1e6:.0f} MB"


def closure(package: str) -> set[str]:
    """A package and all that it needs, of those that are installed."""
    found, waiting = set[str](), [Requirement(package)]
    while waiting:
        wanted = waiting.pop()
        key = re.sub(r"[-_.]+", "-", f"{wanted.name}[{','.join(sorted(wanted.extras))}]").lower()
        if key in found:
            continue
        found.add(key)
        for line in importlib.metadata.requires(wanted.name) or ():
            needed = Requirement(line)
            if not needed.marker or any(needed.marker.evaluate({"extra": extra}) for extra in ("", *wanted.extras)):
                waiting.append(needed)
    return {key.partition("[")[0] for key in found}


def version(library: str) -> str:
    """Of a library."""
    try:
        return importlib.metadata.version({"streaming": "mosaicml-streaming"}.get(library, library))
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    main()

"""How much longer files take to load for their checksums.

    python benchmarks/load_time.py

The files of a dense nano at 320 px, with checksums and as an earlier version wrote them, without: a checkpoint, a state
(with building the network and restoring the optimizer, as `--resume` does), an exported file (opened by its path, as
without checksums), and a cache (open it and augment each image once, as the first epoch does). CPU time of this
process, both forms in turn; the least of each counts, as other work on the machine only adds to it. Before, what other
checksums of the exported file's bytes would cost.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable
from functools import partial
from mmap import ACCESS_READ, mmap
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import google_crc32c
import onnxruntime
import torch
from fuzz_files import Files
from safetensors.torch import load_file, save_file
from tensordict import TensorDict

import boxwright.runtime
from boxwright.checkpoints.detector_file import load_detector
from boxwright.checkpoints.header import read_header
from boxwright.data.cache import _open as open_cache
from boxwright.data.cache_build import CHECKSUMS
from boxwright.data.loader import train_batches
from boxwright.models import registry
from boxwright.runtime import onnx_detector
from boxwright.training.recipes import recipe
from boxwright.training.state import read_state, restore

OLD_ENTRIES = ("version", "mode", "side", "images", "bytes")  # of cache.json in the earlier version


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=31)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        os.environ["BOXWRIGHT_CACHE"] = str(Path(folder) / "home")
        files = Files(Path(folder), 320, None)
        checksums(files.exported, options.repetitions)
        for kind, pair in loads(files, Path(folder) / "old").items():
            new, old = interleaved(pair, options.repetitions)
            times = f"{1000 * new:7.1f} ms with checksums, {1000 * old:7.1f} ms without"
            print(f"{kind:11} {times}: {new / old - 1:+.1%}", flush=True)


def checksums(file: Path, repetitions: int) -> None:
    """Print what checksums of a file's bytes cost, in memory and read in other ways."""
    content = file.read_bytes()

    def from_map() -> None:
        with file.open("rb") as stream, mmap(stream.fileno(), 0, access=ACCESS_READ) as bytes_of_file:
            zlib.crc32(bytes_of_file)

    ways: dict[str, Callable[[], Any]] = {
        "CRC-32": partial(zlib.crc32, content),
        "CRC-32, memory map": from_map,
        "CRC-32, read whole": lambda: zlib.crc32(file.read_bytes()),
        "Adler-32": partial(zlib.adler32, content),
        "SHA-256": partial(hashlib.sha256, content),
        "BLAKE2b": partial(hashlib.blake2b, content),
        "CRC-32C": partial(google_crc32c.value, content),
    }
    for name, seconds in zip(ways, interleaved(tuple(ways.values()), repetitions), strict=True):
        print(f"{name}: {1000 * seconds:.1f} ms of {len(content) / 1e6:.1f} MB")


def interleaved(pair: tuple[Callable[[], Any], ...], repetitions: int) -> list[float]:
    """Least CPU seconds of each function, called in turn; the first round is not counted."""
    seconds = [[timed(load) for load in pair] for _ in range(repetitions + 1)][1:]
    return [min(column) for column in zip(*seconds, strict=True)]


def timed(load: Callable[[], Any]) -> float:
    begun = time.process_time()
    load()
    return time.process_time() - begun


def loads(files: Files, old: Path) -> dict[str, tuple[Callable[[], Any], ...]]:
    """For each kind of file, functions that load it with checksums and without."""
    old.mkdir()
    for file in (files.checkpoint, files.state):
        header = {key: value for key, value in read_header(file).items() if "crc32" not in key}
        save_file(load_file(file), old / file.name, metadata=header)
    cache = files.open_cache().folder
    cache_without_checksums(files, cache, old / "cache")
    return {
        "checkpoint": tuple(partial(load_detector, place / files.checkpoint.name) for place in (files.folder, old)),
        "state": tuple(partial(resume, files, place) for place in (files.folder, old)),
        "exported": (partial(open_exported, files.exported), partial(open_by_path, files.exported)),
        "cache": (partial(first_epoch, files, cache), partial(first_epoch, files, old / "cache")),
    }


def cache_without_checksums(files: Files, cache: Path, to: Path) -> None:
    shutil.copytree(cache, to)
    shutil.rmtree(to / "targets")
    kept = {key: value for key, value in files.open_cache().targets.items() if key != CHECKSUMS}
    TensorDict(kept, []).memmap(to / "targets")  # type: ignore[arg-type]
    about = json.loads((cache / "cache.json").read_text())
    (to / "cache.json").write_text(json.dumps({key: about[key] for key in OLD_ENTRIES}))


def resume(files: Files, folder: Path) -> None:
    """What `--resume` does with a state: build the network, read, restore."""
    detector = registry.build("dense", "nano", files.detector.names, pretrained=False)
    optimizer = torch.optim.AdamW(detector.parameters())
    restore(folder, read_state(folder)[1], detector, None, optimizer)


def open_exported(file: Path) -> None:
    boxwright.runtime.Detector(file, "cpu", threads=1)


def open_by_path(file: Path) -> None:
    """Open an exported file as versions without checksums did: onnxruntime reads it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    onnx_detector._facts(onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"]), file)


def first_epoch(files: Files, folder: Path) -> None:
    """Open a cache and augment all of its images once."""
    cache = open_cache(folder, files.records)
    for _ in train_batches(cache, 8, recipe("dense").augment, seed=0, epoch=0):
        pass


if __name__ == "__main__":
    main()

"""How long an exported detector takes that writes objects one after the other, compared with `dense`.

    python benchmarks/sequence_latency.py [--models pix2seq patchseq] [--objects 20 100] [--repeats 15]

Nano at its image size, untrained: sequences never end early, so the number of objects alone decides. Each file runs on
one image of batch size 1, with one thread. The files take turns, and CPU times are compared, so that other work on the
machine matters little; the median of the repeats, after one run to warm up. Prints a Markdown table.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

import numpy as np
import torch

from boxwright.deployment.onnx.onnx_file import save, to_onnx
from boxwright.models import registry
from boxwright.runtime import Detector

NAMES, SEED = ("a", "b", "c"), 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["pix2seq", "patchseq"])
    parser.add_argument("--objects", nargs="*", type=int, default=[20, 100])
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    files = {("dense", 0): exported("dense")}
    for model in options.models:
        for objects in options.objects:
            files[model, objects] = exported(model, objects)
    image_1HW3 = np.random.default_rng(SEED).integers(0, 255, (1, 240, 320, 3), dtype=np.uint8)
    times = in_turns([partial(file.run, image_1HW3) for file in files.values()], options.repeats)
    print("| nano, fp32 file, one thread | objects | ms | times dense |\n| --- | --- | --- | --- |")
    for (model, objects), taken in zip(files, times, strict=True):
        print(f"| {model} | {objects or 'all at once'} | {taken:.1f} | {taken / times[0]:.2f} |")


def exported(model: str, objects: int = 0) -> Detector:
    """The untrained nano as a file; a sequence detector writes this many objects."""
    torch.manual_seed(SEED)
    detector = registry.build(model, "nano", NAMES, pretrained=False).eval()
    if objects:
        detector.config = replace(detector.config, max_objects=objects)
    with TemporaryDirectory() as folder:
        save(to_onnx(detector), file := Path(folder) / "model.onnx")
        return Detector(file, "cpu", threads=1)


def in_turns(calls: Sequence[Callable[[], Any]], repeats: int) -> list[float]:
    """Median CPU milliseconds of each."""
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats + 1):
        for call, times in zip(calls, taken, strict=True):
            started = process_time()
            call()
            times.append(1000 * (process_time() - started))
    return [median(times[1:]) for times in taken]


if __name__ == "__main__":
    main()

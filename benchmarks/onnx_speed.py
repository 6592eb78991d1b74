"""Exported files compared with torch: is the same detector faster, and what do fewer bits gain and cost?

    python benchmarks/onnx_speed.py [--weights CHECKPOINT ...] [--models dense pix2seq ...]

First every detector, untrained, with sequences of full length (100 objects): eager torch and the fp32 file in turns,
from a decoded image to its boxes. Then each checkpoint as fp32, fp16 and int8 (calibrated on BCCD's training images):
time, megabytes, and AP on BCCD's test images, or on the first 16 training images if the card says that it overfitted
those (`runs/overfit.py`). One thread; CPU times, so that other work on the machine matters little; medians. Prints two
Markdown tables.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch

from boxwright.checkpoints.detector_file import load_detector
from boxwright.data.read import read
from boxwright.data.records import Dataset, Record
from boxwright.deployment.onnx.onnx_file import save, to_onnx
from boxwright.deployment.onnx.parity import (
    average_precision,
    decode_images,
    first_detections,
    predict_with_torch,
    to_file_pixels,
)
from boxwright.deployment.onnx.quantise import FP32_STRIDES, to_fp16, to_int8
from boxwright.models import registry
from boxwright.models.patchseq import PatchSeq
from boxwright.runtime import Detector

BUNDLED = Path(__file__).parents[1] / "src" / "boxwright" / "bundled"
CALIBRATION_IMAGES, OVERFITTED_IMAGES = 64, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", nargs="*", type=Path, default=[BUNDLED / "dense-nano-bccd.safetensors"])
    parser.add_argument(
        "--models", nargs="*", default=[name for name, (_, _, sizes) in registry.DETECTORS.items() if sizes]
    )
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cells = read(BUNDLED / "bccd")
    if options.models:
        print("| nano, untrained | eager torch, ms | fp32 file, ms | times as fast |\n| --- | --- | --- | --- |")
    for model in options.models:
        row(model, cells.splits["test"], options.repeats)
    if options.weights:
        print("\n| trained | precision | ms | times as fast | MB | times smaller | AP |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
    for weights in options.weights:
        rows(weights, cells, options.repeats)


def row(model: str, records: Sequence[Record], repeats: int) -> None:
    """Print the row of one detector: eager torch and its file."""
    detector = registry.build(model, "nano", ("a", "b", "c"), pretrained=False).eval()
    if isinstance(detector, PatchSeq):
        detector.config = replace(detector.config, end_bias=-math.inf)  # untrained, it would end anywhere
    file = opened(to_onnx(detector))
    image_HW3 = next(decode_images(records, detector.image_size))
    torch_ms, file_ms = in_turns(
        [partial(predict_with_torch, detector, image_HW3), partial(file.run, image_HW3[None])], repeats
    )
    print(f"| {model} | {torch_ms:.0f} | {file_ms:.0f} | {torch_ms / file_ms:.2f} |", flush=True)


def rows(weights: Path, cells: Dataset, repeats: int) -> None:
    """Print the rows of one checkpoint in every precision."""
    detector = load_detector(weights)
    overfitted = "overfitted" in json.dumps(detector.card)
    train = cells.splits["train"]
    scored = train[:OVERFITTED_IMAGES] if overfitted else cells.splits["test"]
    calibration = train[:OVERFITTED_IMAGES] if overfitted else train[:: -(-len(train) // CALIBRATION_IMAGES)]
    plain = to_onnx(detector)
    calibration_images = list(decode_images(calibration, detector.image_size))
    models = {"fp32": plain, "fp16": to_fp16(plain, detector.fp32_modules)}
    for stride in FP32_STRIDES:
        models[f"int8, maps up to {stride} px per cell in fp32"] = to_int8(
            plain, calibration_images, detector.fp32_modules, stride
        )
    files = {name: opened(model) for name, model in models.items()}
    one_1HW3 = next(decode_images(scored, detector.image_size))[None]
    taken = dict(zip(files, in_turns([partial(file.run, one_1HW3) for file in files.values()], repeats), strict=True))
    for name, file in files.items():
        size, faster = megabytes(models[name]), taken["fp32"] / taken[name]
        images = zip(scored, decode_images(scored, detector.image_size), strict=True)
        detections = [
            to_file_pixels(first_detections(file.run(image_HW3[None]), detector), image_HW3.shape, record)
            for record, image_HW3 in images
        ]
        ap = average_precision(scored, detections, cells.names, detector) or 0.0
        name_and_size = f"{registry.name_of(detector)}, {detector.image_size} px{', overfitted' if overfitted else ''}"
        smaller = megabytes(plain) / size
        print(
            f"| {name_and_size} | {name} | {taken[name]:.0f} | {faster:.2f} | {size:.1f} | {smaller:.2f} | {ap:.1f} |",
            flush=True,
        )


def opened(model: onnx.ModelProto) -> Detector:
    """The model, saved as a file, with one thread."""
    with TemporaryDirectory() as folder:
        save(model, file := Path(folder) / "model.onnx")
        return Detector(file, "cpu", threads=1)


def in_turns(calls: Sequence[Callable[[], Any]], repeats: int) -> list[float]:
    """Median CPU milliseconds of each, after one call to warm up."""
    taken = np.zeros((repeats + 1, len(calls)))
    for turn in range(repeats + 1):
        for column, call in enumerate(calls):
            started = time.process_time()
            call()
            taken[turn, column] = 1000 * (time.process_time() - started)
    return [statistics.median(column) for column in taken[1:].T.tolist()]


def megabytes(model: onnx.ModelProto) -> float:
    """The size of its file."""
    return model.ByteSize() / 1e6


if __name__ == "__main__":
    main()

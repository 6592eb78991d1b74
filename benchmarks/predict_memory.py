"""Peak memory of `boxwright predict` over few and over many images, each in a process of its own.

    python benchmarks/predict_memory.py

The images are small and generated first, the detector is an untrained `dense` that predicts 100 boxes per image, and
all outputs are written: overlays, JSON and CSV.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from jsonargparse import auto_cli
from PIL import Image


def main(counts: list[int] = [300, 3000], side: int = 96) -> None:  # noqa: B006
    """Run `predict` on each number of images and print its peak memory.

    Args:
        counts: numbers of images.
        side: side of the detector's canvas, in pixels.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_detector(folder / "weights.safetensors", side)
        _write_images(folder / "images", max(counts))
        for count in counts:
            listing = folder / f"{count}.txt"
            listing.write_text("\n".join(f"images/{i:05d}.jpg" for i in range(count)))
            start = time.perf_counter()
            command = [sys.executable, __file__, "--child", str(folder), str(count)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            peak, objects = json.loads(output.splitlines()[-1])
            seconds = time.perf_counter() - start
            print(f"{count:>6} images  {objects:>7} objects  peak {peak / 2**20:7.1f} MiB  {seconds:6.1f} s")


def child(folder: Path, count: str) -> None:
    """One call of `predict`; prints its peak memory in bytes and the number of objects."""
    from boxwright.inference.predict import predict

    summary = predict(
        folder / "weights.safetensors",
        str(folder / f"{count}.txt"),
        folder / f"out-{count}",
        threshold=0.0,
        device="cpu",
    )
    unit = 1 if sys.platform == "darwin" else 1024
    print(json.dumps([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, summary.objects.total()]))


def _write_detector(path: Path, side: int) -> None:
    from boxwright.checkpoints.detector_file import save_detector
    from boxwright.models.registry import build

    save_detector(path, build("dense", "nano", ("cat", "dog"), image_size=side, pretrained=False), {})


def _write_images(folder: Path, count: int) -> None:
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), np.uint8))
        coarse.resize((160, 120), Image.Resampling.BICUBIC).save(folder / f"{i:05d}.jpg")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), sys.argv[3])
    else:
        auto_cli(main)

"""Time from the start of a process to its first boxes: an exported detector without torch, and its checkpoint.

    python benchmarks/cold_start.py

Exports the bundled `dense` nano and starts processes that import boxwright, load, and predict on one of the bundled
images, in turn, each a few times. The time counts from before the process starts until it has boxes. CPU time of the
whole process is printed, too; a busy machine does not stretch it.
"""

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import auto_cli

ROOT = Path(__file__).parents[1] / "src" / "boxwright" / "bundled"
WEIGHTS = ROOT / "dense-nano-bccd.safetensors"
CODE = {
    "boxwright.runtime.Detector": "from boxwright.runtime import Detector; d = Detector({model!r}, 'cpu')",
    "boxwright.load": "from boxwright import load; d = load({weights!r}, 'cpu')",
}
PREDICT = "; import time; assert len(d.predict({image!r})) > 0; print(time.time())"


def main(model: Path | None = None, repeat: int = 5) -> None:
    """Print seconds to the first boxes and of CPU time: the median, and the range.

    Args:
        model: the bundled weights as exported by `boxwright export`; by default they are exported first.
        repeat: processes per way.
    """
    image = next(file for file in sorted(ROOT.rglob("*.jpg")) if file.is_file())
    with tempfile.TemporaryDirectory() as folder:
        file = model or _export(Path(folder) / "model.onnx")
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in CODE}
        for _ in range(repeat):
            for name, code in CODE.items():
                line = (code + PREDICT).format(model=str(file), weights=str(WEIGHTS), image=str(image))
                seconds[name].append(_first_boxes(line))
    for name, taken in seconds.items():
        total, cpu = (_spread(column) for column in zip(*taken, strict=True))
        print(f"{name:<28}{total}   CPU {cpu}")


def _spread(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):6.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"


def _first_boxes(code: str) -> tuple[float, float]:
    start, before = time.time(), resource.getrusage(resource.RUSAGE_CHILDREN)
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return float(output) - start, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _export(path: Path) -> Path:
    from boxwright.checkpoints.detector_file import load_detector
    from boxwright.deployment.onnx.onnx_file import save, to_onnx

    save(to_onnx(load_detector(WEIGHTS)), path)
    return path


if __name__ == "__main__":
    auto_cli(main)

"""How long a fresh process takes to its first boxes: an exported detector without torch, beside its checkpoint.

    python benchmarks/cold_start.py

Exports the bundled `dense` nano and starts processes that import boxwright, load, and detect on one of the bundled
images, in turn, each a few times. The time counts from before the process starts until the boxes are there. Beside it,
the processor time of the whole process, which a busy machine does not stretch.
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
FOUND = "; import time; assert len(d.predict({image!r})) > 0; print(time.time())"


def main(model: Path | None = None, repeat: int = 5) -> None:
    """Print the seconds to the first boxes, and of the processor: the median, and the range.

    Args:
        model: what `boxwright export` made of the bundled weights; by default it is exported first.
        repeat: processes of each kind.
    """
    image = next(file for file in sorted(ROOT.rglob("*.jpg")) if file.is_file())
    with tempfile.TemporaryDirectory() as folder:
        file = model or _export(Path(folder) / "model.onnx")
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in CODE}
        for _ in range(repeat):
            for name, code in CODE.items():
                line = (code + FOUND).format(model=str(file), weights=str(WEIGHTS), image=str(image))
                seconds[name].append(_first_boxes(line))
    for name, taken in seconds.items():
        whole, processor = (_spread(column) for column in zip(*taken, strict=True))
        print(f"{name:<28}{whole}   processor {processor}")


def _spread(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):6.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"


def _first_boxes(code: str) -> tuple[float, float]:
    start, before = time.time(), resource.getrusage(resource.RUSAGE_CHILDREN)
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return float(said) - start, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _export(path: Path) -> Path:
    from boxwright.checkpoints.detector_file import load_detector
    from boxwright.deployment.onnx.onnx_file import save, to_onnx

    save(to_onnx(load_detector(WEIGHTS)), path)
    return path


if __name__ == "__main__":
    auto_cli(main)

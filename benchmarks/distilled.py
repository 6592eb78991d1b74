"""A teacher, its students and their quantised files side by side: accuracy, latency, size.

    python benchmarks/distilled.py DATA teacher=TEACHER.onnx student=STUDENT.onnx "student int8"=STUDENT-int8.onnx \
        [--split test] [--turns 3] [--write benchmarks/results/distilled.md]

Each file is one that `boxwright export` wrote, with a name for its row. AP and AP50 are those of the file itself on the
images of the split. The latency is the median over these images, one at a time, of onnxruntime on one CPU thread: with
resizing and decoding of boxes, which are inside the file, without decoding the image file; in CPU time, which other
work on the machine does not stretch. The files take turns, so that all are measured under the same conditions.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
import onnxruntime
from ablation import Table

from boxwright.data.read import read
from boxwright.data.records import Record
from boxwright.evaluation.coco import Report, score
from boxwright.images import open_image
from boxwright.runtime import Detector


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("files", nargs="+", metavar="NAME=FILE")
    parser.add_argument("--split", default="test")
    parser.add_argument("--turns", type=int, default=3, help="passes of each file over all images")
    parser.add_argument("--write", type=Path)
    a = parser.parse_args()
    dataset = read(a.data)
    records = dataset.splits[a.split]
    files = {name: Path(file) for name, _, file in (text.partition("=") for text in a.files)}
    times = latencies(list(files.values()), records, a.turns)
    about = f"{len(records)} images of {a.data.name}, {a.split}; onnxruntime {onnxruntime.__version__}, one thread"
    table = Table(f"{date.today()}, {about} of {cpu()}.", "", "AP", "AP50", "latency, ms", "file, MB", "px")
    for (name, file), seconds in zip(files.items(), times, strict=True):
        report, image_size = accuracy(file, records, dataset.names), Detector(file, "cpu").image_size
        megabytes = file.stat().st_size / 1e6
        table.add(name, report.ap, report.ap50, f"{1000 * seconds:.1f}", f"{megabytes:.1f}", image_size)
    table.append_to(a.write)


def accuracy(file: Path, records: Sequence[Record], names: Sequence[str]) -> Report:
    detections = Detector(file, "cpu").predict([record.path for record in records], threshold=0.0, batch_size=1)
    return score(records, detections, names)


def latencies(files: Sequence[Path], records: Sequence[Record], turns: int) -> list[float]:
    """Median seconds per image of each file; a first image is not counted."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    sessions = [onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"]) for file in files]
    taken: list[list[float]] = [[] for _ in files]
    images = [np.asarray(open_image(record.path))[None] for record in records]
    for session in sessions:
        run(session, images[0])
    for _ in range(turns):
        for session, times in zip(sessions, taken, strict=True):
            times += [run(session, image_1HW3) for image_1HW3 in images]
    return [statistics.median(times) for times in taken]


def run(session: onnxruntime.InferenceSession, image_1HW3: np.ndarray) -> float:
    """CPU seconds of one image."""
    inputs = {"images": image_1HW3}
    if any(value.name == "seed" for value in session.get_inputs()):
        inputs["seed"] = np.zeros(1, np.int64)
    started = time.process_time()
    session.run(None, inputs)
    return time.process_time() - started


def cpu() -> str:
    """The processor's name, where Linux has it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()

"""A teacher, its students and their quantised files side by side: accuracy, latency, size.

    python benchmarks/distilled.py DATA teacher=TEACHER.onnx student=STUDENT.onnx "student int8"=STUDENT-int8.onnx \
        [--split test] [--turns 3] [--write benchmarks/results/distilled.md]

Of each file that `boxwright export` wrote, under a name. AP and AP50 are those of the file itself, run on the images of
the split. The latency is the median over these images, one at a time, of onnxruntime on one thread of the CPU, with
resizing and the choice of boxes, which are inside the file, and without decoding the image file; in processor time,
which other work on the machine does not stretch. The files take turns, so that all are measured under the same
conditions.
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

from boxwright.data.read import read
from boxwright.data.records import Record
from boxwright.evaluation.coco import score
from boxwright.images import open_image
from boxwright.runtime import Detector

HEAD = "| | AP | AP50 | latency, ms | file, MB | px |\n| --- | --- | --- | --- | --- | --- |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("files", nargs="+", metavar="NAME=FILE")
    parser.add_argument("--split", default="test")
    parser.add_argument("--turns", type=int, default=3, help="times that each file sees all images")
    parser.add_argument("--write", type=Path)
    a = parser.parse_args()
    dataset = read(a.data)
    records = dataset.splits[a.split]
    files = {name: Path(file) for name, _, file in (given.partition("=") for given in a.files)}
    times = latencies(list(files.values()), records, a.turns)
    rows = [
        f"| {name} | {accuracy(file, records, dataset.names)} | {1000 * seconds:.1f} "
        f"| {file.stat().st_size / 1e6:.1f} | {Detector(file, 'cpu').image_size} |"
        for (name, file), seconds in zip(files.items(), times, strict=True)
    ]
    about = f"{len(records)} images of {a.data.name}, {a.split}; onnxruntime {onnxruntime.__version__}, one thread"
    table = "\n".join([f"{date.today()}, {about} of {cpu()}.\n", HEAD, *rows])
    print(table)
    if a.write:
        with a.write.open("a") as stream:
            stream.write(f"\n{table}\n")


def accuracy(file: Path, records: Sequence[Record], names: Sequence[str]) -> str:
    found = Detector(file, "cpu").predict([record.path for record in records], threshold=0.0, batch_size=1)
    report = score(records, found, names)
    return f"{report.ap:.3f} | {report.ap50:.3f}"


def latencies(files: Sequence[Path], records: Sequence[Record], turns: int) -> list[float]:
    """Median seconds an image of each file; a first image is not counted."""
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
    """Processor seconds of one image."""
    given = {"images": image_1HW3}
    if any(wanted.name == "seed" for wanted in session.get_inputs()):
        given["seed"] = np.zeros(1, np.int64)
    started = time.process_time()
    session.run(None, given)
    return time.process_time() - started


def cpu() -> str:
    """The processor's name where Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()


if __name__ == "__main__":
    main()

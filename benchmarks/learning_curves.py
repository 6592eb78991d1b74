"""How many epochs suit how many images: AP of whole runs of different lengths, each with its whole schedule.

    python benchmarks/learning_curves.py [DATA] [--images 50 200] [--epochs 20 40 80] [--seeds 0] [--model dense]
        [--held-out 0.2] [--image-size PX] [--write benchmarks/results/learning_curves.md]

For each number of images (by default all), seed and number of epochs, a nano detector is trained by its recipe, and the
averaged weights at the end are scored on images that are held out: a share of the training images where the options
name no others, so that nothing is chosen on images whose scores are reported. The images are a stratified part of the
training images, which the seed chooses; they are the same for all epochs. Minutes are CPU minutes on a CPU, and leave
out scoring.

A row is appended to the file when it is done. Rows that stand there under the same title are not computed again, so the
same command goes on after a kill. After a change of recipe or code, take another file.
"""

import argparse
import datetime
from pathlib import Path

import torch
from ablation import BCCD, Data, clock, images, options, recipe_settings, train

from boxwright.data.cache import build
from boxwright.data.loader import steps_per_epoch
from boxwright.data.records import Record
from boxwright.data.split import split
from boxwright.models import registry

COLUMNS = ("images", "epochs", "seed", "steps", "AP", "AP50", "minutes", "date")
HEAD = f"| {' | '.join(COLUMNS)} |\n{'| --- ' * len(COLUMNS)}|\n"


class Rows:
    """The rows of this measurement in a Markdown file.

    Args:
        file: to append to; None only prints.
        title: of the measurement, the line above its table.
    """

    def __init__(self, file: Path | None, title: str):
        self.file, self.title = file, title
        self.done: set[tuple[int, ...]] = set()  # images, epochs and seed of rows that are there
        self.last = ""  # title in the file
        for line in file.read_text().splitlines() if file and file.is_file() else ():
            if line and not line.startswith("|"):
                self.last = line
            elif self.last == title and line[2:3].isdigit():
                self.done.add(tuple(int(cell) for cell in line.split("|")[1:4]))

    def add(self, *cells: object) -> None:
        """Print a row and append it; floats, such as AP, get three digits."""
        texts = [f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells]
        line = f"| {' | '.join(texts)} |"
        print(line, flush=True)
        if self.file:
            begin = "" if self.last == self.title else f"\n{self.title}\n\n{HEAD}"
            with self.file.open("a") as stream:
                stream.write(f"{begin}{line}\n")
            self.last = self.title


def main() -> None:
    a = arguments()
    image_size = a.image_size or registry.DETECTORS[a.model].sizes["nano"].image_size
    names, records, val_records = images(a, a.held_out)
    counts = a.images or [len(records)]
    if not 1 <= min(counts) <= max(counts) <= len(records):
        raise SystemExit(f"--images must be from 1 to {len(records)}, the images to train on")
    title = f"`{a.model}` nano, {a.data.name}, {image_size} px, scored on {len(val_records)} images, {a.device}"
    rows, val = Rows(a.write, title), build(val_records, image_size)
    print(f"{title}\n{HEAD}", end="")
    for count in counts:
        for seed in a.seeds:
            data = Data(names, build(part(records, count, seed), image_size), val_records, val)
            for epochs in a.epochs:
                if (count, epochs, seed) not in rows.done:
                    rows.add(count, epochs, seed, *measure(a.model, data, epochs, seed, a.device))


def arguments() -> argparse.Namespace:
    parser = options(__doc__)
    parser.add_argument("data", type=Path, nargs="?", default=BCCD)
    parser.add_argument("--model", default="dense", choices=[name for name, e in registry.DETECTORS.items() if e.sizes])
    parser.add_argument("--images", type=int, nargs="+", help="numbers of training images; by default all")
    parser.add_argument("--epochs", type=int, nargs="+", default=[20, 40, 80])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--held-out", type=float, default=0.2, help="share of the training images to score on")
    parser.add_argument("--image-size", type=int)
    return parser.parse_args()


def part(records: list[Record], count: int, seed: int) -> list[Record]:
    """So many of the images, each class with about its share of the objects."""
    return records if count == len(records) else split(records, count / len(records), seed)[1]


def measure(model: str, data: Data, epochs: int, seed: int, device: str) -> tuple[object, ...]:
    """Steps, AP, AP50, minutes and date of one run."""
    settings, now = recipe_settings(model, epochs) | {"seed": seed}, clock(device)
    image_size, started = data.train.side, now()
    torch.manual_seed(seed)
    detector = registry.build(model, "nano", data.names, image_size=image_size)
    detector = train(detector, data.train, settings, device)
    minutes, report = (now() - started) / 60, data.report(detector, device)
    steps = epochs * steps_per_epoch(len(data.train), settings["batch_size"])
    return steps, report.ap, report.ap50, f"{minutes:.1f}", datetime.date.today()


if __name__ == "__main__":
    main()

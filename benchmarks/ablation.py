"""What the scripts that train several detectors and compare them in one table share: options, data, training, table."""

import argparse
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import boxwright.bundled
from boxwright.config import Augment, Optim
from boxwright.data.cache import Cache, build
from boxwright.data.loader import steps_per_epoch, train_batches
from boxwright.data.mixing import without_mixing
from boxwright.data.read import merge_val, name_splits, read, train_and_val
from boxwright.data.records import Record
from boxwright.evaluation.coco import Report, score
from boxwright.evaluation.run import detect
from boxwright.training import recipes
from boxwright.training.fabric import keep_memory
from boxwright.training.optim import make_optimizer, moving_average, rate_factor, set_rate
from boxwright.types import Batch, Detector

STEPS = 10_000  # of a schedule that follows the clock
BCCD = Path(boxwright.bundled.__path__[0]) / "bccd"


def options(description: str | None) -> argparse.ArgumentParser:
    """A parser of the options that all have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--val-data", type=Path)
    parser.add_argument("--train-split")
    parser.add_argument("--val-split")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--write", type=Path)
    return parser


class Data(NamedTuple):
    """Classes, cached images to train on, and images to score on with their cache."""

    names: tuple[str, ...]
    train: Cache
    val_records: list[Record]
    val: Cache

    def report(self, detector: Detector, device: str) -> Report:
        """COCO's numbers of a detector on the images to score on."""
        return score(self.val_records, detect(detector, self.val, 16, device), self.names)


def prepare(a: argparse.Namespace, image_size: int, held_out: float = 0.0) -> Data:
    """The data of the options at this size.

    Args:
        a: the options, with `data`.
        image_size: in pixels.
        held_out: share of the training images to score on, where the data has nothing else to score on.
    """
    names, records, val_records = images(a, held_out)
    return Data(names, build(records, image_size), val_records, build(val_records, image_size))


def images(a: argparse.Namespace, held_out: float = 0.0) -> tuple[tuple[str, ...], list[Record], list[Record]]:
    """Classes, images to train on, and images to score on; the arguments are those of `prepare`."""
    keep_memory()
    dataset = name_splits(read(a.data), a.train_split, a.val_split)
    dataset = merge_val(dataset, read(a.val_data)) if a.val_data else dataset
    return dataset.names, *train_and_val(dataset, held_out)


def recipe_settings(model: str, epochs: int) -> dict[str, Any]:
    """The settings of a detector's recipe, as a run's config.yaml has them, with seed 0."""
    recipe = recipes.recipe(model)
    settings = {"optim": asdict(recipe.optim), "augment": asdict(recipe.augment), "batch_size": recipe.batch_size}
    return settings | {"epochs": epochs, "seed": 0}


def train(detector: Detector, cache: Cache, settings: dict[str, Any], device: str) -> Detector:
    """The averaged detector at the end, as `boxwright train` makes it with these settings, without files.

    Args:
        detector: to be trained.
        cache: training images.
        settings: optim, augment, batch_size and seed; and epochs or, by `clock`, seconds.
        device: cpu or cuda.
    """
    optim, augment = Optim(**settings["optim"]), Augment(**settings["augment"])
    batch_size, seed, now = settings["batch_size"], settings["seed"], clock(device)
    detector.to(device, memory_format=torch.channels_last).train()
    optimizer, average = make_optimizer(detector, optim), moving_average(detector, optim.ema)
    steps, started, seconds = steps_per_epoch(len(cache), batch_size), now(), settings.get("seconds")
    total = STEPS if seconds else settings["epochs"] * steps

    def batches(epoch: int) -> Iterator[Batch]:
        late = bool(seconds) and now() - started >= seconds * (augment.mixed_until or 0.0)
        chosen, epochs = without_mixing(augment) if late else augment, None if seconds else settings["epochs"]
        return train_batches(cache, batch_size, chosen, seed=seed, epoch=epoch, epochs=epochs, device=device)

    for step, batch in enumerate(chain.from_iterable(batches(epoch) for epoch in count())):
        done = int((now() - started) / seconds * total) if seconds else step
        if done >= total:
            break
        set_rate(optimizer, rate_factor(done, total, optim))
        torch.manual_seed(1_000_003 * seed + step)
        losses = detector.loss(detector(batch.images_BCHW, batch.sizes_B2, batch), batch)
        loss = torch.stack(list(losses.values())).sum()
        loss.backward()
        nn.utils.clip_grad_norm_(detector.parameters(), optim.clip or math.inf)
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(detector)
        if (step + 1) % steps == 0:
            minutes = (now() - started) / 60
            print(f"  epoch {(step + 1) // steps}: loss {loss.item():.3f}, {minutes:.1f} min", flush=True)
    return average.module.eval()


def clock(device: str) -> Callable[[], float]:
    """Seconds of the process on a CPU, so that a busy machine changes nothing; wall time on a GPU."""
    return time.process_time if device == "cpu" else time.perf_counter


class Table:
    """A Markdown table, printed row by row.

    Args:
        title: the line above it.
        columns: their heads.
    """

    def __init__(self, title: str, *columns: str):
        self.lines = [f"\n{title}\n", f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]

    def add(self, *cells: object) -> None:
        """Add a row; floats, such as AP, get three digits."""
        texts = [f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells]
        self.lines.append(f"| {' | '.join(texts)} |")
        print(self.lines[-1], flush=True)

    def append_to(self, file: Path | None) -> None:
        """Append the table to a file, if one is named."""
        if file:
            with file.open("a") as stream:
                stream.write("\n".join([*self.lines, ""]))

"""What makes `pix2seq` learn faster: each row trained for the same time, scored on the same held-out images.

    python benchmarks/pix2seq_ablation.py DATA [--val-data DATA] [--minutes 5] [--image-size 192] [--max-objects 30]

DATA is a folder with splits, or two are given: voc-animals-train and voc-animals-val at 320 px on a GPU, or BCCD at
192 px on the CPU. The learning rate follows the clock (wall time on a GPU, CPU time of the process otherwise, so that
a busy machine changes nothing), and so every row ends its own schedule. `--rows` picks some, `--write FILE` appends
the table.
"""

import argparse
import datetime
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import nn

from boxwright.config import Augment, Optim, fill_in
from boxwright.data.cache import Cache, build
from boxwright.data.loader import train_batches
from boxwright.data.read import merge_val, name_splits, read, train_and_val
from boxwright.evaluation.coco import score
from boxwright.evaluation.run import validate
from boxwright.models.pix2seq import SIZES, Pix2Seq, Pix2SeqConfig
from boxwright.training import recipes
from boxwright.training.fabric import keep_memory
from boxwright.training.optim import make_optimizer, moving_average, rate_factor, set_rate
from boxwright.types import Batch, Detector

TRAINED = {
    "official: 1 sentence an image": {},
    "4 sentences": {"sentences": 4},
    "8 sentences": {"sentences": 8},
    "4 sentences, 2 views": {"sentences": 4, "views": 2},
    "4 sentences, no noise": {"sentences": 4, "noise": False},
}
SMALL = replace(  # for minutes on a CPU: narrow, and a vocabulary of 400 ids with about one coordinate a pixel
    SIZES["nano"], encoder_layers=2, encoder_dim=128, encoder_hidden=512, decoder_dim=128, decoder_hidden=512,
    bins=200, first_coordinate=200, vocabulary=400, dropout=0.0, drop_path=0.0,
)  # fmt: skip
STEPS = 10_000  # a clock's whole turn, in steps of the schedule


def batches(cache: Cache, batch_size: int, augment: Augment, device: str) -> Iterator[Batch]:
    """Without end."""
    for epoch in count():
        yield from train_batches(cache, batch_size, augment, seed=0, epoch=epoch, device=device)


def train(
    detector: Detector, stream: Iterator[Batch], optim: Optim, seconds: float, clock: Callable[[], float]
) -> tuple[Any, int, float]:
    """The averaged detector when the time is over, the number of steps, and the mean of the last 20 losses."""
    optimizer, average = make_optimizer(detector, optim), moving_average(detector, optim.ema or 0)
    started, losses = clock(), []
    while (done := (clock() - started) / seconds) < 1:
        step = len(losses)
        set_rate(optimizer, rate_factor(int(done * STEPS), STEPS, optim))
        torch.manual_seed(step)
        batch = next(stream)
        loss = detector.loss(detector(batch.images_BCHW, batch.sizes_B2, batch), batch)["tokens"]
        loss.backward()
        nn.utils.clip_grad_norm_(detector.parameters(), optim.clip or 0)
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(detector)
        losses.append(loss.item())
    return average.module.eval(), len(losses), sum(losses[-20:]) / len(losses[-20:])


def decoded(config: Pix2SeqConfig) -> dict[str, Pix2SeqConfig]:
    """Ways to write with the same weights."""
    ways = {"greedy": {}, "nucleus 0.4": {"top_p": 0.4}, "3 beams": {"beams": 3}}
    if not config.noise:
        ways = {
            "stop at the end": {},
            "end biased by -2": {"end_bias": -2.0},
            "ignore the end": {"end_bias": -math.inf},
        }
    return {said: replace(config, **given) for said, given in ways.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--val-data", type=Path)
    parser.add_argument("--train-split")
    parser.add_argument("--val-split")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--image-size", type=int, default=192)
    parser.add_argument("--max-objects", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rows", nargs="+", choices=TRAINED, default=list(TRAINED))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--write", type=Path)
    a = parser.parse_args()
    keep_memory()
    dataset = name_splits(read(a.data), a.train_split, a.val_split)
    dataset = merge_val(dataset, read(a.val_data)) if a.val_data else dataset
    records, val_records = train_and_val(dataset)
    cache, val_cache = build(records, a.image_size), build(val_records, a.image_size)
    clock = time.process_time if a.device == "cpu" else time.perf_counter
    recipe = recipes.recipe("pix2seq")
    optim = fill_in(Optim(lr=1e-3), recipe.optim)
    shape = replace(SIZES["nano"] if a.device != "cpu" else SMALL, image_size=a.image_size)
    shape = replace(shape, max_objects=a.max_objects, length=5 * a.max_objects)
    title = f"{datetime.date.today()}, {a.data.name}, {a.image_size} px, {a.device}, {a.minutes:g} minutes a row"
    head = "| trained | decoded | steps | last loss | held-out log-likelihood a word | AP | AP50 |"
    lines = [f"\n{title}\n", head, "| --- " * 7 + "|"]
    for name in a.rows:
        given = dict(TRAINED[name])
        augment = fill_in(Augment(scale=(0.6, 1.4), views=given.pop("views", 1)), recipe.augment)
        torch.manual_seed(0)
        detector = Pix2Seq(replace(shape, **given), dataset.names).to(a.device, memory_format=torch.channels_last)
        stream = batches(cache, a.batch_size, augment, a.device)
        trained, steps, loss = train(detector.train(), stream, optim, a.minutes * 60, clock)
        for said, config in decoded(trained.config).items():
            trained.config = config
            done = validate(trained, val_cache, 16, a.device)
            report, word = score(val_records, done.detections, dataset.names), done.likelihood / done.tokens
            lines.append(
                f"| {name} | {said} | {steps} | {loss:.3f} | {word:.3f} | {report.ap:.3f} | {report.ap50:.3f} |"
            )
            print(lines[-1], flush=True)
    if a.write:
        with a.write.open("a") as stream:
            stream.write("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()

"""What makes `pix2seq` learn faster: each row trained for the same time, scored on the same held-out images.

    python benchmarks/pix2seq_ablation.py DATA [--val-data DATA] [--minutes 5] [--image-size 192] [--max-objects 30]

DATA is a folder with splits, or two are given: voc-animals-train and voc-animals-val at 320 px on a GPU, or BCCD at
192 px on the CPU. The learning rate follows the clock (wall time on a GPU, CPU time of the process otherwise, so that
a busy machine changes nothing), and so every row finishes its schedule. `--rows` picks some, `--write FILE` appends
the table.
"""

import datetime
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from ablation import Table, clock, options, prepare
from torch import nn

from boxwright.config import Augment, Optim, fill_in
from boxwright.data.cache import Cache
from boxwright.data.loader import train_batches
from boxwright.evaluation.coco import score
from boxwright.evaluation.run import validate
from boxwright.models.pix2seq import Pix2Seq, Pix2SeqConfig
from boxwright.training import recipes
from boxwright.training.optim import make_optimizer, moving_average, rate_factor, set_rate
from boxwright.types import Batch, Detector

TRAINED = {
    "official: 1 sequence per image": {},
    "4 sequences": {"sentences": 4},
    "8 sequences": {"sentences": 8},
    "4 sequences, 2 views": {"sentences": 4, "views": 2},
    "4 sequences, no noise": {"sentences": 4, "noise": False},
}
SMALL = Pix2SeqConfig(  # for minutes on a CPU: narrow, and a vocabulary of 400 ids with about one coordinate a pixel
    encoder_layers=2, encoder_dim=128, encoder_hidden=512, decoder_dim=128, decoder_hidden=512,
    bins=200, first_coordinate=200, vocabulary=400, dropout=0.0, drop_path=0.0,
)  # fmt: skip
STEPS = 10_000  # of the schedule, over the whole time


def batches(cache: Cache, batch_size: int, augment: Augment, device: str) -> Iterator[Batch]:
    """Batches of one epoch after the other, without end."""
    for epoch in count():
        yield from train_batches(cache, batch_size, augment, seed=0, epoch=epoch, device=device)


def train(
    detector: Detector, stream: Iterator[Batch], optim: Optim, seconds: float, now: Callable[[], float]
) -> tuple[Any, int, float]:
    """The averaged detector when the time is over, the number of steps, and the mean of the last 20 losses."""
    optimizer, average = make_optimizer(detector, optim), moving_average(detector, optim.ema or 0)
    started, losses = now(), []
    while (done := (now() - started) / seconds) < 1:
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


def decodings(config: Pix2SeqConfig) -> dict[str, Pix2SeqConfig]:
    """Ways to generate with the same weights."""
    ways = {"greedy": {}, "nucleus 0.4": {"top_p": 0.4}, "3 beams": {"beams": 3}}
    if not config.noise:
        ways = {
            "stop at the end": {},
            "end biased by -2": {"end_bias": -2.0},
            "ignore the end": {"end_bias": -math.inf},
        }
    return {name: replace(config, **settings) for name, settings in ways.items()}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--image-size", type=int, default=192)
    parser.add_argument("--max-objects", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rows", nargs="+", choices=TRAINED, default=list(TRAINED))
    a = parser.parse_args()
    data, recipe = prepare(a, a.image_size), recipes.recipe("pix2seq")
    optim = fill_in(Optim(lr=1e-3), recipe.optim)
    shape = replace(Pix2SeqConfig() if a.device != "cpu" else SMALL, image_size=a.image_size)
    shape = replace(shape, max_objects=a.max_objects, length=5 * a.max_objects)
    title = f"{datetime.date.today()}, {a.data.name}, {a.image_size} px, {a.device}, {a.minutes:g} minutes per row"
    table = Table(title, "trained", "decoded", "steps", "last loss", "held-out log-likelihood per token", "AP", "AP50")
    for name in a.rows:
        row = dict(TRAINED[name])
        augment = fill_in(Augment(scale=(0.6, 1.4), views=row.pop("views", 1)), recipe.augment)
        torch.manual_seed(0)
        detector = Pix2Seq(replace(shape, **row), data.names).to(a.device, memory_format=torch.channels_last)
        stream = batches(data.train, a.batch_size, augment, a.device)
        trained, steps, loss = train(detector.train(), stream, optim, a.minutes * 60, clock(a.device))
        for decoding, config in decodings(trained.config).items():
            trained.config = config
            validation = validate(trained, data.val, 16, a.device)
            report = score(data.val_records, validation.detections, data.names)
            likelihood = validation.likelihood / validation.tokens
            table.add(name, decoding, steps, loss, likelihood, report.ap, report.ap50)
    table.append_to(a.write)


if __name__ == "__main__":
    main()

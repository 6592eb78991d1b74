"""The effect of mixing the images of a batch: by nothing, by mosaic, mixup or copy-blend, and by all, in equal epochs.

    python benchmarks/augmentation_ablation.py [DATA] [--val-data DATA] [--model dense] [--epochs 20]
        [--image-size 320] [--images N] [--probability 0.5] [--mixed-until 0.8] [--classes CLASS ...] [--write FILE]

Without DATA it is BCCD's training images. Where DATA has nothing to score on, a fifth of its training images is held
out, always the same, so that neither the test images nor other reported ones choose anything. All rows have the recipe
of the detector and ImageNet weights in the backbone. `--images` trains on so many of the other images; `--rows` picks
some rows by their number; `--seeds` repeats each and gives the mean; `--classes` adds the mean over some classes.

`objects` are those of an image as the network gets it, and `augmentation` the time of a batch until it is ready, both
without the last part of the run, in which nothing is mixed. Times are CPU time of the process, which a busy machine
does not change; on a GPU, wall time.
"""

import datetime
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from ablation import BCCD, Data, Table, clock, images, options, recipe_settings, train
from learning_curves import part

from boxwright.config import Augment, fill_in
from boxwright.data.cache import build
from boxwright.data.loader import steps_per_epoch, train_batches
from boxwright.models import registry
from boxwright.training.recipes import MIXED, recipe

ROWS = {
    "none": (),
    "mosaic": ("mosaic",),
    "mixup": ("mixup",),
    "copy-blend": ("copy_blend",),
    "all": ("mosaic", "mixup", "copy_blend"),
}


def cost(data: Data, settings: dict[str, Any], device: str) -> tuple[float, float]:
    """Objects of an augmented image, and milliseconds for a batch, over the first epoch."""
    augment, now = Augment(**settings["augment"]), clock(device)
    started, counts = now(), []
    for batch in train_batches(data.train, settings["batch_size"], augment, seed=0, epoch=0, device=device):
        counts.append(batch.valid_BN.sum() / len(batch))
    return torch.stack(counts).mean().item(), 1000 * (now() - started) / len(counts)


def scores(data: Data, settings: dict[str, Any], a: Any, seed: int) -> list[float]:
    """AP and AP50 after training, of all classes and of those that the options name."""
    torch.manual_seed(seed)
    detector = registry.build(a.model, "nano", data.names, image_size=a.image_size)
    report = data.report(train(detector, data.train, settings | {"seed": seed}, a.device), a.device)
    some = [report.per_class[name] for name in a.classes]
    return [report.ap, report.ap50, *(statistics.mean(row[key] for row in some) for key in ("ap", "ap50") if some)]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("data", type=Path, nargs="?", default=BCCD)
    parser.add_argument("--model", default="dense", choices=[name for name, e in registry.DETECTORS.items() if e.sizes])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--images", type=int, help="train on so many images")
    parser.add_argument("--probability", type=float, default=0.5)
    parser.add_argument("--mixed-until", type=float, help="fraction of the run; by default that of `train`")
    parser.add_argument("--classes", nargs="+", default=[])
    parser.add_argument("--rows", type=int, nargs="+", choices=range(len(ROWS)), default=range(len(ROWS)))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    a = parser.parse_args()
    names, records, val_records = images(a, 0.2)
    records = part(records, min(a.images or len(records), len(records)), seed=0)
    data = Data(names, build(records, a.image_size), val_records, build(val_records, a.image_size))
    if unknown := [name for name in a.classes if name not in data.names]:
        parser.error(f"{a.data} has no class {', '.join(unknown)}; it has: {', '.join(data.names)}")
    usual = asdict(fill_in(Augment(mixed_until=a.mixed_until), fill_in(recipe(a.model).augment, MIXED)))
    settings, now = recipe_settings(a.model, a.epochs), clock(a.device)
    trained = a.epochs * settings["batch_size"] * steps_per_epoch(len(data.train), settings["batch_size"])
    title = (
        f"{datetime.date.today()}, {a.model} nano, {a.data.name}, {len(data.train)} images to train on, "
        f"{len(data.val)} to score on, {a.image_size} px, {a.epochs} epochs, each with a probability of "
        f"{a.probability:g} until {usual['mixed_until']:g} of the run, {a.device}, mean over {len(a.seeds)} seed(s)"
    )
    some = ("mean AP", f"mean AP50 ({', '.join(a.classes)})") if a.classes else ()
    costs = ("objects", "augmentation, ms per batch", "ms per training image")
    table = Table(title, "mixed by", "AP", "AP50", *some, *costs)
    for name in [list(ROWS)[number] for number in a.rows]:
        chances = {key: a.probability * (key in ROWS[name]) for key in ROWS["all"]}
        row = settings | {"augment": usual | chances}
        objects, milliseconds = cost(data, row, a.device)
        started = now()
        found = [scores(data, row, a, seed) for seed in a.seeds]
        took = (now() - started) / len(a.seeds) / trained * 1000  # the score included
        means = [statistics.mean(values) for values in zip(*found, strict=True)]
        table.add(name, *means, f"{objects:.1f}", f"{milliseconds:.0f}", f"{took:.0f}")
    table.append_to(a.write)


if __name__ == "__main__":
    main()

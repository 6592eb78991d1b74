"""What each addition to `patchseq` is worth, and `pix2seq` beside it: every row trained for the same time.

    python benchmarks/patchseq_ablation.py [DATA] [--val-data DATA] [--minutes 5] [--image-size 192]

Without DATA it is BCCD's training images, a fifth of them held out to score on. The learning rate follows the clock
(wall time on a GPU, CPU time of the process otherwise, so that a busy machine changes nothing), and so every row ends
its own schedule. Each row adds one thing to the one before. Where sentences end, they are scored both as they end and
written on to the last object. All rows have the narrow shape that fits minutes on a CPU; on a GPU, `nano`. `--rows`
picks some by their number, `--write FILE` appends the table.
"""

import argparse
import datetime
import math
import time
from dataclasses import replace
from pathlib import Path

import torch
from pix2seq_ablation import SMALL, batches, train

import boxwright.bundled
from boxwright.config import Augment, fill_in
from boxwright.data.cache import build
from boxwright.data.read import merge_val, name_splits, read, train_and_val
from boxwright.evaluation.coco import score
from boxwright.evaluation.run import validate
from boxwright.models.patchseq import PUBLISHED, SIZES, PatchSeq
from boxwright.models.pix2seq import SIZES as PIX2SEQ_SIZES
from boxwright.models.pix2seq import Pix2Seq
from boxwright.training import recipes
from boxwright.training.fabric import keep_memory

BCCD = Path(boxwright.bundled.__path__[0]) / "bccd"
NARROW = {"encoder_layers": 2, "dim": 128, "hidden": 512, "dropout": 0.0, "drop_path": 0.0}
ROWS = {
    "as published": PUBLISHED,
    "+ positions": PUBLISHED | {"positions": True},
    "+ pointing": PUBLISHED | {"positions": True, "pointing": True},
    "+ offsets: the default": {},
    "+ class last, noise": {"noise": True},
    "pix2seq": None,
}


def begin(row: dict | None, names: tuple[str, ...], image_size: int, objects: int, small: bool) -> PatchSeq | Pix2Seq:
    """The detector of a row."""
    torch.manual_seed(0)
    if row is None:
        shape = replace(SMALL if small else PIX2SEQ_SIZES["nano"], image_size=image_size)
        return Pix2Seq(replace(shape, max_objects=objects, length=5 * objects), names)
    shape = replace(SIZES["nano"], image_size=image_size, max_objects=objects, **(NARROW if small else {}))
    return PatchSeq(replace(shape, **row), names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", default=BCCD)
    parser.add_argument("--val-data", type=Path)
    parser.add_argument("--val-split")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--image-size", type=int, default=192)
    parser.add_argument("--max-objects", type=int, default=30)
    parser.add_argument("--rows", type=int, nargs="+", choices=range(len(ROWS)), default=range(len(ROWS)))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--write", type=Path)
    a = parser.parse_args()
    keep_memory()
    dataset = name_splits(read(a.data), None, a.val_split)
    dataset = merge_val(dataset, read(a.val_data)) if a.val_data else dataset
    records, val_records = train_and_val(dataset, 0.2)
    cache, val_cache = build(records, a.image_size), build(val_records, a.image_size)
    clock = time.process_time if a.device == "cpu" else time.perf_counter
    recipe = recipes.recipe("patchseq")
    augment = fill_in(Augment(), recipe.augment)
    title = f"{datetime.date.today()}, {a.data.name}, {a.image_size} px, {a.device}, {a.minutes:g} minutes a row"
    head = "| trained | written | steps | last loss | AP | AP50 | small | medium | large |"
    lines = [f"\n{title}\n", head, "| --- " * 9 + "|"]
    for name in [list(ROWS)[number] for number in a.rows]:
        detector = begin(ROWS[name], dataset.names, a.image_size, a.max_objects, a.device == "cpu")
        detector = detector.to(a.device, memory_format=torch.channels_last).train()
        stream = batches(cache, recipe.batch_size, augment, a.device)
        trained, steps, loss = train(detector, stream, recipe.optim, a.minutes * 60, clock)
        ends = isinstance(trained, PatchSeq) and not trained.config.noise
        for said, bias in (("to its end", 0.0), ("on", -math.inf)) if ends else (("on", None),):
            if bias is not None:
                trained.config = replace(trained.config, end_bias=bias)
            report = score(val_records, validate(trained, val_cache, 16, a.device).detections, dataset.names)
            sizes = " | ".join(f"{value:.3f}" if value >= 0 else "-" for value in report.stats[3:6])
            lines.append(f"| {name} | {said} | {steps} | {loss:.3f} | {report.ap:.3f} | {report.ap50:.3f} | {sizes} |")
            print(lines[-1], flush=True)
    if a.write:
        with a.write.open("a") as stream:
            stream.write("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()

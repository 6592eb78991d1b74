"""The effect of each addition to `patchseq`, and `pix2seq` for comparison: every row trained for the same time.

    python benchmarks/patchseq_ablation.py [DATA] [--val-data DATA] [--minutes 5] [--image-size 192]

Without DATA it is BCCD's training images, a fifth of them held out to score on. The learning rate follows the clock
(wall time on a GPU, CPU time of the process otherwise, so that a busy machine changes nothing), and so every row
finishes its schedule. Each row adds one thing to the one before. Sequences that end are scored both as they end and at
full length, with the end suppressed. All rows have the narrow shape that fits minutes on a CPU; on a GPU, `nano`.
`--rows` picks some by their number, `--write FILE` appends the table.
"""

import datetime
import math
from dataclasses import replace
from pathlib import Path

import torch
from ablation import BCCD, Table, clock, options, prepare
from pix2seq_ablation import SMALL, batches, train

from boxwright.config import Augment, fill_in
from boxwright.evaluation.coco import score
from boxwright.evaluation.run import validate
from boxwright.models.patchseq import PUBLISHED, PatchSeq, PatchSeqConfig
from boxwright.models.pix2seq import Pix2Seq, Pix2SeqConfig
from boxwright.training import recipes

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
        shape = replace(SMALL if small else Pix2SeqConfig(), image_size=image_size)
        return Pix2Seq(replace(shape, max_objects=objects, length=5 * objects), names)
    shape = replace(PatchSeqConfig(), image_size=image_size, max_objects=objects, **(NARROW if small else {}))
    return PatchSeq(replace(shape, **row), names)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("data", type=Path, nargs="?", default=BCCD)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--image-size", type=int, default=192)
    parser.add_argument("--max-objects", type=int, default=30)
    parser.add_argument("--rows", type=int, nargs="+", choices=range(len(ROWS)), default=range(len(ROWS)))
    a = parser.parse_args()
    data, recipe = prepare(a, a.image_size, 0.2), recipes.recipe("patchseq")
    augment = fill_in(Augment(), recipe.augment)
    title = f"{datetime.date.today()}, {a.data.name}, {a.image_size} px, {a.device}, {a.minutes:g} minutes per row"
    table = Table(
        title, "trained", "generated", "steps", "last loss", "AP", "AP50", "AP small", "AP medium", "AP large"
    )
    for name in [list(ROWS)[number] for number in a.rows]:
        detector = begin(ROWS[name], data.names, a.image_size, a.max_objects, a.device == "cpu")
        detector = detector.to(a.device, memory_format=torch.channels_last).train()
        stream = batches(data.train, recipe.batch_size, augment, a.device)
        trained, steps, loss = train(detector, stream, recipe.optim, a.minutes * 60, clock(a.device))
        ends = isinstance(trained, PatchSeq) and not trained.config.noise
        biases = {"to the end token": 0.0, "at full length": -math.inf} if ends else {"at full length": None}
        for until, bias in biases.items():
            if bias is not None:
                trained.config = replace(trained.config, end_bias=bias)
            report = score(data.val_records, validate(trained, data.val, 16, a.device).detections, data.names)
            sizes = [value if value >= 0 else "-" for value in map(float, report.stats[3:6])]
            table.add(name, until, steps, loss, report.ap, report.ap50, *sizes)
    table.append_to(a.write)


if __name__ == "__main__":
    main()

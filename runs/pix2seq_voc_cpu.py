"""A short training of a small `pix2seq`, as published, on voc-animals without a GPU: is AP above chance?

    python runs/pix2seq_voc_cpu.py FOLDER [--epochs 3]

FOLDER holds voc-animals-train and voc-animals-val (COCO JSON). Sequences of 16 objects (few images have more), 256 px,
four sequences per image; scored on the first 200 validation images, before and after. Writes metrics.csv
and curves.png into runs/pix2seq-voc-cpu. About ten minutes an epoch on one core.
"""

import argparse
import csv
from pathlib import Path

import torch

from boxwright.config import Augment, Optim, fill_in
from boxwright.data.cache import build
from boxwright.data.read import merge_val, read, train_and_val
from boxwright.evaluation.coco import score
from boxwright.evaluation.run import detect
from boxwright.models.pix2seq import Pix2Seq, Pix2SeqConfig
from boxwright.training import recipes
from boxwright.training.config import RunConfig
from boxwright.training.fabric import make_fabric
from boxwright.training.loop import Loop
from boxwright.visualization import charts

OUT = Path("runs/pix2seq-voc-cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=3)
    a = parser.parse_args()
    dataset = merge_val(read(a.folder / "voc-animals-train"), read(a.folder / "voc-animals-val"))
    records, val_records = train_and_val(dataset)
    val_records = val_records[:200]
    config = Pix2SeqConfig(image_size=256, max_objects=16, length=80, sentences=4)
    torch.manual_seed(0)
    detector = Pix2Seq(config, dataset.names)
    cache, val_cache = build(records, 256), build(val_records, 256)
    chance = score(val_records, detect(detector, val_cache), dataset.names)
    recipe = recipes.recipe("pix2seq")
    augment = fill_in(Augment(scale=(0.8, 1.25)), recipe.augment)
    optim = fill_in(Optim(lr=1e-3), recipe.optim)
    run = RunConfig(a.folder, out=OUT, epochs=a.epochs, batch_size=16, augment=augment, optim=optim)
    fabric, _ = make_fabric("cpu", "32-true", 1, 1)
    progress = Loop(fabric, detector, run, cache, (val_cache, val_records)).run()
    charts.curves(OUT / "metrics.csv", OUT / "curves.png")
    with (OUT / "metrics.csv").open() as stream:
        losses = [float(row["loss"]) for row in csv.DictReader(stream)]
    tenth = max(1, len(losses) // 10)
    print(f"loss {sum(losses[:tenth]) / tenth:.3f} (first tenth) to {sum(losses[-tenth:]) / tenth:.3f} (last tenth)")
    print(f"AP {chance.ap:.5f}, AP50 {chance.ap50:.5f} untrained; AP {progress.best_ap:.5f} after {a.epochs} epochs")


if __name__ == "__main__":
    main()

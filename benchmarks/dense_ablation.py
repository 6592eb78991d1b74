"""What the one-to-many scores and the rivals of `dense` are worth, on BCCD's official split.

    python benchmarks/dense_ablation.py [--epochs 8] [--write FILE]

- whole: as it ships;
- whole + NMS: the same weights, but the one-to-many scores cleaned up by NMS at IoU 0.6, which `dense` does without;
- 200 rivals: as it ships, but fewer cells compete (300 do);
- one-to-one only: one cell an object teaches, no rivals, no one-to-many scores (the form of OneNet); with NMS, too.
"""

import argparse
import datetime
from dataclasses import asdict, replace
from pathlib import Path

import torch
from peers import train
from torch import Tensor
from torchvision.ops import batched_nms

import boxwright.bundled
from boxwright.data.cache import build
from boxwright.data.read import read
from boxwright.evaluation.coco import score
from boxwright.evaluation.run import detect
from boxwright.models.dense import SIZES, Dense, DenseOutputs, one_to_one
from boxwright.models.losses.task_aligned import assigned_losses, candidates
from boxwright.training import recipes
from boxwright.training.fabric import keep_memory
from boxwright.types import Batch, Predictions

DATA = Path(boxwright.bundled.__path__[0]) / "bccd"


class OneToOneOnly(Dense):
    """Every cell scores for itself, and one cell an object is taught."""

    def _predict(self, maps: list[Tensor], size: torch.Size) -> DenseOutputs:
        raw = super()._predict(maps, size)
        everyone = torch.arange(raw.many_BQK.shape[1], device=raw.many_BQK.device).expand(len(raw.many_BQK), -1)
        return raw._replace(one_BRK=raw.many_BQK, cells_BR=everyone)

    def loss(self, raw: DenseOutputs, batch: Batch) -> dict[str, Tensor]:
        pairs_BNQ = candidates(raw.centres_Q2, raw.reach_Q2, batch.boxes_BN4, batch.valid_BN)
        chosen_BNQ = one_to_one(raw, batch, pairs_BNQ)
        return assigned_losses(raw.one_BRK, raw.boxes_BQ4, batch.boxes_BN4, batch.labels_BN, chosen_BNQ)


def with_nms(raw: DenseOutputs) -> Predictions:
    """The one-to-many scores of all cells after NMS, as a conventional detector would decode them."""
    boxes, scores, labels = [], [], []
    for scores_QK, boxes_Q4 in zip(raw.many_BQK.sigmoid(), raw.boxes_BQ4, strict=True):
        value, index = scores_QK.flatten().topk(500)
        cell, label = index // scores_QK.shape[1], index % scores_QK.shape[1]
        kept = batched_nms(boxes_Q4[cell], value, label, 0.6)[:100]
        missing = 100 - len(kept)
        boxes.append(torch.nn.functional.pad(boxes_Q4[cell][kept], (0, 0, 0, missing)))
        scores.append(torch.nn.functional.pad(value[kept], (0, missing)))
        labels.append(torch.nn.functional.pad(label[kept], (0, missing)))
    return Predictions(torch.stack(boxes), torch.stack(scores), torch.stack(labels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--write", type=Path)
    a = parser.parse_args()
    keep_memory()
    dataset, recipe = read(DATA), recipes.recipe("dense")
    plan = {"optim": asdict(recipe.optim), "augment": asdict(recipe.augment), "epochs": a.epochs, "seed": 0}
    plan["batch_size"] = recipe.batch_size
    cache, test = build(dataset.splits["train"], 320), dataset.splits["test"]
    test_cache = build(test, 320)
    lines = [f"\n{datetime.date.today()}, BCCD, {a.epochs} epochs\n", "| `dense` | AP | AP50 |", "| --- | --- | --- |"]
    shape, fewer = SIZES["nano"], replace(SIZES["nano"], rivals=200)
    sides = {"whole": (Dense, shape), "200 rivals": (Dense, fewer), "one-to-one only": (OneToOneOnly, shape)}
    for name, (kind, config) in sides.items():
        torch.manual_seed(0)
        detector = train(kind(config, dataset.names), cache, plan, "cpu")
        for said, decode in {name: detector.decode, f"{name} + NMS": with_nms}.items():
            detector.decode = decode
            report = score(test, detect(detector, test_cache), dataset.names)
            lines.append(f"| {said} | {report.ap:.3f} | {report.ap50:.3f} |")
            print(lines[-1], flush=True)
    text = "\n".join([*lines, ""])
    if a.write:
        with a.write.open("a") as stream:
            stream.write(text)


if __name__ == "__main__":
    main()

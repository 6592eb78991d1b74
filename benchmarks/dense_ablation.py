"""The effect of the one-to-many scores and the duplicate relation of `dense`, on BCCD's official split.

    python benchmarks/dense_ablation.py [--epochs 8] [--write FILE]

- whole: as it ships;
- whole + NMS: the same weights, but the one-to-many scores cleaned up by NMS at IoU 0.6, which `dense` does without;
- duplicate relation of 200: as it ships, but 200 candidates attend to each other instead of 300;
- one-to-one only: one cell is taught per object, no duplicate relation, no one-to-many scores (the form of OneNet);
  with NMS, too.
"""

import datetime
from dataclasses import replace

import torch
from ablation import BCCD, Table, options, prepare, recipe_settings, train
from torch import Tensor
from torchvision.ops import batched_nms

from boxwright.models.dense import SIZES, Dense, DenseOutputs, one_to_one
from boxwright.models.losses.task_aligned import assigned_losses, candidates
from boxwright.types import Batch, Predictions


class OneToOneOnly(Dense):
    """Every cell predicts its own scores, and one cell is taught per object."""

    def _predict(self, maps: list[Tensor], size: torch.Size) -> DenseOutputs:
        outputs = super()._predict(maps, size)
        batch_size, cells = outputs.many_BQK.shape[:2]
        all_cells_BR = torch.arange(cells, device=outputs.many_BQK.device).expand(batch_size, -1)
        return outputs._replace(one_BRK=outputs.many_BQK, cells_BR=all_cells_BR)

    def loss(self, outputs: DenseOutputs, batch: Batch) -> dict[str, Tensor]:
        pairs_BNQ = candidates(outputs.centres_Q2, outputs.reach_Q2, batch.boxes_BN4, batch.valid_BN)
        quality_BNQ = one_to_one(outputs, batch, pairs_BNQ)
        return assigned_losses(outputs.one_BRK, outputs.boxes_BQ4, batch.boxes_BN4, batch.labels_BN, quality_BNQ)


def with_nms(outputs: DenseOutputs) -> Predictions:
    """The one-to-many scores of all cells after NMS, as a conventional detector would decode them."""
    boxes, scores, labels = [], [], []
    for scores_QK, boxes_Q4 in zip(outputs.many_BQK.sigmoid(), outputs.boxes_BQ4, strict=True):
        value, index = scores_QK.flatten().topk(500)
        cell, label = index // scores_QK.shape[1], index % scores_QK.shape[1]
        kept = batched_nms(boxes_Q4[cell], value, label, 0.6)[:100]
        missing = 100 - len(kept)
        boxes.append(torch.nn.functional.pad(boxes_Q4[cell][kept], (0, 0, 0, missing)))
        scores.append(torch.nn.functional.pad(value[kept], (0, missing)))
        labels.append(torch.nn.functional.pad(label[kept], (0, missing)))
    return Predictions(torch.stack(boxes), torch.stack(scores), torch.stack(labels))


def main() -> None:
    parser = options(__doc__)
    parser.set_defaults(data=BCCD, val_split="test", device="cpu")
    parser.add_argument("--epochs", type=int, default=8)
    a = parser.parse_args()
    data, settings = prepare(a, 320), recipe_settings("dense", a.epochs)
    table = Table(f"{datetime.date.today()}, BCCD, {a.epochs} epochs", "`dense`", "AP", "AP50")
    rows = {
        "whole": (Dense, SIZES["nano"]),
        "duplicate relation of 200": (Dense, replace(SIZES["nano"], rivals=200)),
        "one-to-one only": (OneToOneOnly, SIZES["nano"]),
    }
    for name, (kind, config) in rows.items():
        torch.manual_seed(0)
        detector = train(kind(config, data.names), data.train, settings, a.device)
        for row, decode in {name: detector.decode, f"{name} + NMS": with_nms}.items():
            detector.decode = decode
            report = data.report(detector, a.device)
            table.add(row, report.ap, report.ap50)
    table.append_to(a.write)


if __name__ == "__main__":
    main()

"""The effect of the one-to-many scores, the duplicate relation and the lean form of `dense`, in equal epochs.

    python benchmarks/dense_ablation.py [--epochs 8] [--image-size 320] [--val-split test] [--rows N ...] [--write FILE]

On BCCD's training images, a fifth of them held out to score on, so that the test images choose nothing; with
`--val-split test` those are scored. Seed 0.

- whole: nano as it ships;
- whole + NMS: the same weights, but the one-to-many scores cleaned up by NMS at IoU 0.6, which `dense` does without;
- duplicate relation of 300: 300 candidates attend to each other instead of 150;
- not lean: 96 channels, towers of two convolutions, smoothing, 300 candidates and two layers of relation, as nano was;
- not lean, 64 channels: the same, as narrow as the lean form;
- one-to-one only: one cell is taught per object, no duplicate relation, no one-to-many scores (the form of OneNet);
  with NMS, too.

The last column counts the training images of a second of CPU time, validation not included.
"""

import datetime
from dataclasses import replace

import torch
from ablation import BCCD, Table, clock, options, prepare, recipe_settings, train
from torch import Tensor
from torchvision.ops import batched_nms

from boxwright.models.dense import SIZES, Dense, DenseConfig, DenseOutputs, one_to_one
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


ROWS: dict[str, tuple[type[Dense], DenseConfig]] = {
    "whole": (Dense, SIZES["nano"]),
    "duplicate relation of 300": (Dense, replace(SIZES["nano"], rivals=300)),
    "not lean": (Dense, DenseConfig()),
    "not lean, 64 channels": (Dense, DenseConfig(channels=64)),
    "one-to-one only": (OneToOneOnly, SIZES["nano"]),
}


def main() -> None:
    parser = options(__doc__)
    parser.set_defaults(data=BCCD, device="cpu")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--rows", type=int, nargs="+", choices=range(len(ROWS)), default=range(len(ROWS)))
    a = parser.parse_args()
    data, settings, now = prepare(a, a.image_size, held_out=0.2), recipe_settings("dense", a.epochs), clock(a.device)
    title = (
        f"{datetime.date.today()}, BCCD, {a.image_size} px, {a.epochs} epochs, {len(data.val_records)} images scored"
    )
    table = Table(title, "`dense`", "AP", "AP50", "images/s")
    for name in (list(ROWS)[row] for row in a.rows):
        kind, config = ROWS[name]
        torch.manual_seed(0)
        started = now()
        detector = kind(replace(config, image_size=a.image_size), data.names)
        detector = train(detector, data.train, settings, a.device)
        speed = f"{a.epochs * len(data.train) / (now() - started):.1f}"
        for row, decode in {name: detector.decode, f"{name} + NMS": with_nms}.items():
            detector.decode = decode
            report = data.report(detector, a.device)
            table.add(row, report.ap, report.ap50, speed)
    table.append_to(a.write)


if __name__ == "__main__":
    main()

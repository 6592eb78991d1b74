"""A trained detector beside others: same backbone, weights, images, augmentation, batch and number of epochs.

    boxwright train DATA --train-split train --val-split test --model deformable --out RUN
    python benchmarks/peers.py DATA RUN --train-split train --val-split test --peers detr hf-detr hf-deformable fcos

RUN is the folder of a run of `boxwright train` on the same data: its config.yaml gives image size, epochs, batch size,
augmentation and seed, which the peers are then trained with. All are scored on the validation images with the averaged
weights of the last epoch. `--classes` adds the mean over some classes, `--write FILE` appends the table.

Peers are torchvision's `fcos`, `retinanet` and `faster-rcnn`; Hugging Face's `hf-detr`, `hf-deformable` (as published)
and `hf-deformable-refined` (with box refinement), in the dims of ours (`pip install transformers`); and our other
detectors, `dense` and `detr`. Each learns by the optimizer settings of the nearest recipe of ours: torchvision's by
those of `dense`, Hugging Face's by those of `detr` and `deformable`; and by those of RUN where RUN is of that kind.
"""

import argparse
import datetime
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from hugging_face import HuggingFace, package
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

from boxwright.checkpoints.detector_file import load_detector
from boxwright.config import Augment, Optim
from boxwright.data.cache import Cache, build
from boxwright.data.loader import steps_per_epoch, train_batches
from boxwright.data.read import merge_val, name_splits, read, train_and_val
from boxwright.evaluation.coco import Report, score
from boxwright.evaluation.run import detect
from boxwright.models import registry
from boxwright.models.backbones.backbone import Backbone
from boxwright.training import recipes
from boxwright.training.fabric import keep_memory
from boxwright.training.optim import make_optimizer, moving_average, rate_factor, set_rate
from boxwright.types import Batch, Detector, Predictions, pixels

WIDTH = 128  # of the peers' pyramids
STRIDES = (8, 16, 32)
NEAREST = {  # whose optimizer settings a peer gets
    "fcos": "dense", "retinanet": "dense", "faster-rcnn": "dense", "hf-detr": "detr", "hf-deformable": "deformable",
    "hf-deformable-refined": "deformable", "dense": "dense", "detr": "detr",
}  # fmt: skip


class Pyramid(BackboneWithFPN):
    """Our backbone, with its weights and frozen stem, under torchvision's feature pyramid with levels 3 to 7."""

    def __init__(self, backbone: Backbone):
        nn.Module.__init__(self)
        self.body, self.out_channels = backbone, WIDTH
        self.fpn = FeaturePyramidNetwork(backbone.channels, WIDTH, LastLevelP6P7(WIDTH, WIDTH))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.fpn({str(i): x for i, x in enumerate(self.body(images))})


class Peer(Detector):
    """A torchvision detector behind the contract of ours; it sees the same canvas, and resizes nothing."""

    def __init__(self, kind: str, names: tuple[str, ...], image_size: int, backbone: str):
        super().__init__()
        self.names, self.image_size = names, image_size
        base = Backbone(backbone, STRIDES)
        build, options = {
            "fcos": (FCOS, {"score_thresh": 0.001}),
            "retinanet": (RetinaNet, {"score_thresh": 0.001, "anchor_generator": anchors()}),
            "faster-rcnn": (FasterRCNN, {"box_score_thresh": 0.001, "box_roi_pool": pool()}),
        }[kind]
        self.network = build(
            Pyramid(base), len(names) + 1, min_size=image_size, max_size=image_size,
            image_mean=[0.0] * 3, image_std=[1.0] * 3, **options,
        )  # fmt: skip

    def backbone_parameters(self) -> list[nn.Parameter]:
        return list(self.network.backbone.body.parameters())

    def forward(self, images_BCHW: Tensor, sizes_B2: Tensor) -> Tensor:
        images = pixels(images_BCHW)
        return images if self.training else self.network(list(images))

    def loss(self, raw: Tensor, batch: Batch) -> dict[str, Tensor]:
        rows = zip(batch.boxes_BN4, batch.labels_BN, batch.valid_BN, strict=True)
        side = raw.shape[-1]
        targets = [{"boxes": boxes[valid] * side, "labels": labels[valid] + 1} for boxes, labels, valid in rows]
        return self.network(list(raw), targets)

    def decode(self, raw: list[dict[str, Tensor]]) -> Predictions:
        boxes, scores, labels = torch.zeros(len(raw), 100, 4), torch.zeros(len(raw), 100), torch.zeros(len(raw), 100)
        for row, found in enumerate(raw):
            kept = min(100, len(found["scores"]))
            boxes[row, :kept] = found["boxes"][:kept].cpu() / self.image_size
            scores[row, :kept], labels[row, :kept] = found["scores"][:kept].cpu(), found["labels"][:kept].cpu() - 1
        return Predictions(boxes, scores, labels.long().clamp(min=0))


def anchors() -> AnchorGenerator:
    """RetinaNet's, as torchvision's own builders make them."""
    sizes = tuple((s, int(s * 2 ** (1 / 3)), int(s * 2 ** (2 / 3))) for s in (32, 64, 128, 256, 512))
    return AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5)


def pool() -> MultiScaleRoIAlign:
    """Faster R-CNN's, on the maps of the backbone; its anchors are torchvision's own, one size a level."""
    return MultiScaleRoIAlign(["0", "1", "2"], output_size=7, sampling_ratio=2)


def train(detector: Detector, cache: Cache, plan: dict[str, Any], device: str) -> Detector:
    """The averaged detector of the last epoch: what `boxwright train` does with the plan, without its files."""
    optim, augment, epochs, seed = Optim(**plan["optim"]), Augment(**plan["augment"]), plan["epochs"], plan["seed"]
    detector.to(device, memory_format=torch.channels_last).train()
    optimizer, average = make_optimizer(detector, optim), moving_average(detector, optim.ema)
    steps, started = steps_per_epoch(len(cache), plan["batch_size"]), time.perf_counter()
    for epoch in range(epochs):
        batches = train_batches(cache, plan["batch_size"], augment, seed=seed, epoch=epoch, device=device)
        for step, batch in enumerate(batches, start=epoch * steps):
            set_rate(optimizer, rate_factor(step, epochs * steps, optim))
            torch.manual_seed(step)
            loss = torch.stack(
                list(detector.loss(detector(batch.images_BCHW, batch.sizes_B2, batch), batch).values())
            ).sum()
            loss.backward()
            nn.utils.clip_grad_norm_(detector.parameters(), optim.clip)
            optimizer.step()
            optimizer.zero_grad()
            average.update_parameters(detector)
        minutes = (time.perf_counter() - started) / 60
        print(f"  epoch {epoch + 1}: loss {loss.item():.3f}, {minutes:.1f} min", flush=True)
    return average.module.eval()


def peer(name: str, trained: Detector, names: tuple[str, ...]) -> Detector:
    """An untrained detector in the image size and on the backbone of the trained one.

    Those of the same kind have its dims, other kinds those of their nano size.
    """
    image_size, backbone = trained.image_size, trained.config.backbone
    if name in ("fcos", "retinanet", "faster-rcnn"):
        return Peer(name, names, image_size, backbone)
    kind = NEAREST[name]
    alike = trained if registry.name_of(trained) == kind else None
    shape = (
        alike.config
        if alike
        else replace(registry.DETECTORS[kind][2]["nano"], image_size=image_size, backbone=backbone)
    )
    if not name.startswith("hf-"):
        return registry.DETECTORS[kind][0](shape, names)
    if kind == "deformable":
        shape = replace(shape, refine=name == "hf-deformable-refined")
    return HuggingFace(shape, names)


def row(name: str, report: Report, detector: Detector, classes: list[str]) -> str:
    """One line of the table."""
    parameters = sum(p.numel() for p in detector.parameters())
    cells = [name, f"{parameters / 1e6:.1f}", f"{report.ap:.3f}", f"{report.ap50:.3f}"]
    if classes:
        cells += [f"{sum(report.per_class[c][k] for c in classes) / len(classes):.3f}" for k in ("ap", "ap50")]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--val-data", type=Path)
    parser.add_argument("--train-split")
    parser.add_argument("--val-split")
    parser.add_argument("--peers", nargs="+", choices=NEAREST, default=["fcos"])
    parser.add_argument("--classes", nargs="+", default=[])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--write", type=Path)
    a = parser.parse_args()

    if any(name.startswith("hf-") for name in a.peers):
        package()
    keep_memory()
    plan = yaml.safe_load((a.run / "config.yaml").read_text())
    trained = load_detector(a.run / "last.safetensors")
    own, image_size = registry.name_of(trained), trained.image_size
    dataset = name_splits(read(a.data), a.train_split, a.val_split)
    dataset = merge_val(dataset, read(a.val_data)) if a.val_data else dataset
    records, val_records = train_and_val(dataset)
    cache, val_cache = build(records, image_size), build(val_records, image_size)
    extra = f" mean AP | mean AP50 ({', '.join(a.classes)}) |" if a.classes else ""
    title = f"{datetime.date.today()}, {a.data.name}, {len(records)} images, {image_size} px, {plan['epochs']} epochs"
    lines = [
        f"\n{title}\n",
        f"| detector | M parameters | AP | AP50 |{extra}",
        "| --- " * (4 + 2 * bool(a.classes)) + "|",
    ]
    for name in (*a.peers, own):
        print(name, flush=True)
        torch.manual_seed(plan["seed"])
        if name == own:
            detector = load_detector(a.run / "last.safetensors", a.device)
        else:
            settings = {} if NEAREST[name] == own else {"optim": asdict(recipes.recipe(NEAREST[name]).optim)}
            detector = train(peer(name, trained, dataset.names), cache, plan | settings, a.device)
        report = score(val_records, detect(detector, val_cache, 16, a.device), dataset.names)
        lines.append(row(name, report, detector, a.classes))
        print(lines[-1], flush=True)
    if a.write:
        with a.write.open("a") as stream:
            stream.write("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()

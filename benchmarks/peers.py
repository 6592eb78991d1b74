"""A trained detector compared with others: same backbone, weights, images, augmentation, batch and number of epochs.

    boxwright train DATA --train-split train --val-split test --model deformable --out RUN
    python benchmarks/peers.py DATA RUN --train-split train --val-split test --peers detr hf-detr hf-deformable fcos

RUN is the folder of a run of `boxwright train` on the same data: its config.yaml gives image size, epochs, batch size,
augmentation and seed, which the peers are then trained with. All are scored on the validation images with the averaged
weights of the last epoch. `--classes` adds the mean over some classes, `--write FILE` appends the table.

Peers are torchvision's `fcos`, `retinanet` and `faster-rcnn`; Hugging Face's `hf-detr`, `hf-deformable` (as published)
and `hf-deformable-refined` (with box refinement), in the dims of ours (`pip install transformers`); and our other
detectors, `dense` and `detr`. Each takes the optimizer settings of the nearest recipe of ours: torchvision's those of
`dense`, Hugging Face's those of the published `detr` and of `deformable`; or those of RUN where RUN trained that
detector.
"""

import datetime
from dataclasses import asdict, replace
from pathlib import Path

import torch
import yaml
from ablation import Table, options, prepare, train
from hugging_face import HuggingFace, package
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

from boxwright.checkpoints.detector_file import load_detector
from boxwright.evaluation.coco import Report
from boxwright.models import registry
from boxwright.models.backbones.backbone import Backbone
from boxwright.models.detr import DetrConfig
from boxwright.training import recipes
from boxwright.types import Batch, Detector, Predictions, pixels

WIDTH = 128  # of the peers' pyramids
STRIDES = (8, 16, 32)
NEAREST = {  # the detector whose optimizer settings a peer takes
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
    """A torchvision detector behind the contract of ours; it gets the same canvas, and resizes nothing."""

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

    def forward(
        self, images_BCHW: Tensor, sizes_B2: Tensor, targets: Batch | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training mode, else detections: torchvision's networks give one or the other."""
        images = pixels(images_BCHW)
        if targets is None or not self.training:
            return self.network(list(images))
        rows = zip(targets.boxes_BN4, targets.labels_BN, targets.valid_BN, strict=True)
        side = images.shape[-1]
        objects = [{"boxes": boxes[valid] * side, "labels": labels[valid] + 1} for boxes, labels, valid in rows]
        return self.network(list(images), objects)

    def loss(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        return outputs

    def decode(self, outputs: list[dict[str, Tensor]]) -> Predictions:
        count = len(outputs)
        boxes, scores, labels = torch.zeros(count, 100, 4), torch.zeros(count, 100), torch.zeros(count, 100)
        for row, detections in enumerate(outputs):
            kept = min(100, len(detections["scores"]))
            boxes[row, :kept] = detections["boxes"][:kept].cpu() / self.image_size
            scores[row, :kept] = detections["scores"][:kept].cpu()
            labels[row, :kept] = detections["labels"][:kept].cpu() - 1
        return Predictions(boxes, scores, labels.long().clamp(min=0))


def anchors() -> AnchorGenerator:
    """RetinaNet's anchors, as in torchvision's own builders."""
    sizes = tuple((s, int(s * 2 ** (1 / 3)), int(s * 2 ** (2 / 3))) for s in (32, 64, 128, 256, 512))
    return AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5)


def pool() -> MultiScaleRoIAlign:
    """Faster R-CNN's pooling, on the maps of the backbone; its anchors are torchvision's own, one size per level."""
    return MultiScaleRoIAlign(["0", "1", "2"], output_size=7, sampling_ratio=2)


def peer(name: str, trained: Detector, names: tuple[str, ...]) -> Detector:
    """An untrained detector in the image size and on the backbone of the trained one.

    The same detector has its dims, another one those of its nano size.
    """
    image_size, backbone = trained.image_size, trained.config.backbone
    if name in ("fcos", "retinanet", "faster-rcnn"):
        return Peer(name, names, image_size, backbone)
    kind = NEAREST[name]
    shape = trained.config
    if name == "hf-detr":  # the published form, without proposals
        shape = DetrConfig(backbone, image_size)
    elif registry.name_of(trained) != kind:
        shape = replace(registry.DETECTORS[kind][2]["nano"], image_size=image_size, backbone=backbone)
    if not name.startswith("hf-"):
        return registry.DETECTORS[kind][0](shape, names)
    if kind == "deformable":
        shape = replace(shape, refine=name == "hf-deformable-refined")
    return HuggingFace(shape, names)


def recipe_of(name: str) -> recipes.Recipe:
    """The recipe of the nearest detector of ours."""
    return recipes.PUBLISHED_DETR if name == "hf-detr" else recipes.recipe(NEAREST[name])


def cells(report: Report, detector: Detector, classes: list[str]) -> list[object]:
    """The numbers of a row."""
    parameters = sum(p.numel() for p in detector.parameters())
    of_classes = ("ap", "ap50") if classes else ()
    means = [sum(report.per_class[name][key] for name in classes) / len(classes) for key in of_classes]
    return [f"{parameters / 1e6:.1f}", report.ap, report.ap50, *means]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--peers", nargs="+", choices=NEAREST, default=["fcos"])
    parser.add_argument("--classes", nargs="+", default=[])
    a = parser.parse_args()

    if any(name.startswith("hf-") for name in a.peers):
        package()
    settings = yaml.safe_load((a.run / "config.yaml").read_text())
    trained = load_detector(a.run / "last.safetensors")
    own, image_size = registry.name_of(trained), trained.image_size
    data = prepare(a, image_size)
    size = f"{len(data.train)} images, {image_size} px, {settings['epochs']} epochs"
    extra = ["mean AP", f"mean AP50 ({', '.join(a.classes)})"] if a.classes else []
    table = Table(f"{datetime.date.today()}, {a.data.name}, {size}", "detector", "M parameters", "AP", "AP50", *extra)
    for name in (*a.peers, own):
        print(name, flush=True)
        torch.manual_seed(settings["seed"])
        if name == own:
            detector = load_detector(a.run / "last.safetensors", a.device)
        else:
            optim = settings["optim"] if NEAREST[name] == own and name != "hf-detr" else asdict(recipe_of(name).optim)
            detector = train(peer(name, trained, data.names), data.train, settings | {"optim": optim}, a.device)
        table.add(name, *cells(data.report(detector, a.device), detector, a.classes))
    table.append_to(a.write)


if __name__ == "__main__":
    main()

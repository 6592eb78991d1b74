"""Our detectors compared with others: same images, backbone with the same weights, augmentation, length of training.

    python benchmarks/peers.py DATA --detectors dense pix2seq pix2seq-tutorial detr hf-detr fcos \\
        --train-split train --val-split test --image-size 192 --epochs 5 --seeds 0 1 --write benchmarks/results/peers.md
    python benchmarks/peers.py DATA --detectors dense fcos --minutes 3    # instead of epochs: CPU time of each
    boxwright train DATA --train-split train --val-split test --model deformable --out RUN
    python benchmarks/peers.py DATA RUN --train-split train --val-split test --detectors detr hf-deformable

All are trained here, from the ImageNet weights of the backbone, and scored on the validation images with the averaged
weights at the end. Ours take their recipes; torchvision's optimizer settings and batch size are those of `dense`,
Hugging Face's those of the published `detr` and of `deformable`, the tutorial's its own. The augmentation is that of
`dense` for all. Where `--minutes` are given, the learning rate follows the clock (`ablation.clock`: CPU time of the
process, wall time on a GPU), so that each finishes its schedule. With several seeds, numbers are means, and the last
column is the largest difference in AP.

With RUN, the folder of a run of `boxwright train` on the same data, its config.yaml gives image size, epochs, batch
size, augmentation and seed, and its last weights are the last row; a detector of its kind takes its settings and dims.

- `dense`, `deformable`, `detr`, `pix2seq`, `patchseq`: ours, of size nano but for image size and backbone;
- `fcos`, `retinanet`, `faster-rcnn`: torchvision's;
- `hf-detr`, `hf-deformable` (as published), `hf-deformable-refined` (with box refinement): Hugging Face's, in small
  dims (`pip install transformers`);
- `pix2seq-tutorial`: the recipe of moein-shariatnia/Pix2Seq (`pix2seq_tutorial.py`).

`--held-out 0.2` trains on four fifths of the training images only. On the others it chooses the score thresholds of
best F1, one for each class, as `boxwright train` does on its validation images, and adds what they give on the images
to score on: precision and recall at IoU 0.50 of all classes together, and the greatest recall with a precision of 0.8
or more. `--classes` adds the mean over some classes, `--write FILE` appends the table.
"""

import argparse
import datetime
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

import pix2seq_tutorial
import torch
import yaml
from ablation import Data, Table, clock, images, options, train
from hugging_face import HuggingFace, package
from pix2seq_tutorial import Pix2SeqTutorial
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

from boxwright.checkpoints.detector_file import load_detector
from boxwright.data.cache import build
from boxwright.data.records import Record
from boxwright.data.split import split
from boxwright.evaluation.coco import Report
from boxwright.evaluation.thresholds import PRECISION, Choice, Point
from boxwright.models import registry
from boxwright.models.backbones.backbone import Backbone
from boxwright.models.detr import DetrConfig
from boxwright.thresholds import Thresholds
from boxwright.training import recipes
from boxwright.types import Batch, Detector, Predictions, pixels

WIDTH = 128  # of the peers' pyramids
STRIDES = (8, 16, 32)
OURS = ("dense", "deformable", "detr", "pix2seq", "patchseq")
TORCHVISION = ("fcos", "retinanet", "faster-rcnn")
HUGGING_FACE = ("hf-detr", "hf-deformable", "hf-deformable-refined")
TUTORIAL = "pix2seq-tutorial"


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


@dataclass
class Conditions:
    """What is the same for all.

    Attributes:
        image_size: side of the canvas, in pixels.
        backbone: a timm model.
        settings: epochs or seconds, and augment; with a run, also its batch_size.
        own: the detector of the run, if there is one.
        optim: its settings.
    """

    image_size: int
    backbone: str
    settings: dict[str, Any]
    own: Detector | None = None
    optim: dict[str, Any] = field(default_factory=dict)

    def is_own(self, name: str) -> bool:
        """Whether it is a detector of ours of the kind of the run."""
        return self.own is not None and registry.name_of(self.own) == name


def conditions_of_run(run: Path, device: str) -> tuple[Conditions, list[int]]:
    """The conditions of a run, and its seed."""
    stored, own = yaml.safe_load((run / "config.yaml").read_text()), load_detector(run / "last.safetensors", device)
    settings = {key: stored[key] for key in ("epochs", "batch_size", "augment")}
    return Conditions(own.image_size, own.config.backbone, settings, own, stored["optim"]), [stored["seed"]]


def conditions_of_options(a: argparse.Namespace) -> tuple[Conditions, list[int]]:
    """The conditions on the command line, and the seeds."""
    if (a.epochs is None) == (a.minutes is None):
        raise SystemExit("give RUN, --epochs or --minutes, one of them.")
    length = {"epochs": a.epochs} if a.minutes is None else {"seconds": 60 * a.minutes}
    settings = length | {"augment": asdict(recipes.recipe("dense").augment)}
    return Conditions(a.image_size, a.backbone, settings), a.seeds


def recipe_of(name: str) -> recipes.Recipe:
    """Whose optimizer settings and batch size it takes."""
    if name == TUTORIAL:
        return pix2seq_tutorial.RECIPE
    if name == "hf-detr":
        return recipes.recipe("detr", "resnet50")  # as published
    return recipes.recipe("dense" if name in TORCHVISION else "deformable" if name in HUGGING_FACE else name)


def settings_of(name: str, conditions: Conditions, seed: int) -> dict[str, Any]:
    """The settings with which `ablation.train` trains a detector."""
    recipe = recipe_of(name)
    optim = conditions.optim if conditions.is_own(name) else asdict(recipe.optim)
    return {"batch_size": recipe.batch_size, "optim": optim, "seed": seed} | conditions.settings


def untrained(name: str, conditions: Conditions, data: Data) -> Detector:
    """A detector in the image size and on the backbone of all; of the kind of the run, in its dims."""
    image_size, backbone, names = conditions.image_size, conditions.backbone, data.names
    if name in TORCHVISION:
        return Peer(name, names, image_size, backbone)
    if name == TUTORIAL:
        most = int(data.train.targets["starts"].diff().max())  # objects of a training image
        shape = pix2seq_tutorial.Shape(backbone, image_size)
        return Pix2SeqTutorial(replace(shape, objects=min(most, shape.objects)), names)
    if name == "hf-detr":
        return HuggingFace(DetrConfig(backbone, image_size), names)
    kind = "deformable" if name in HUGGING_FACE else name
    shape = replace(registry.DETECTORS[kind].sizes["nano"], image_size=image_size, backbone=backbone)
    if conditions.own is not None and conditions.is_own(kind):
        shape = conditions.own.config
    if name in HUGGING_FACE:
        return HuggingFace(replace(shape, refine=name == "hf-deformable-refined"), names)
    return registry.DETECTORS[kind].network(shape, names)


@dataclass
class Result:
    """Of one detector and one seed; `thresholds` are None where no images were held out to choose them on."""

    parameters: int
    minutes: float
    report: Report
    thresholds: Thresholds | None = None

    @property
    def point(self) -> Point | None:
        """Precision and recall of all classes together at the thresholds."""
        return self.thresholds and self.report.thresholds.overall(Choice(None, self.thresholds), each=True).in_use


def prepare(a: argparse.Namespace, image_size: int) -> tuple[Data, Data | None]:
    """The data of the options, and the same with the held out images in place of those to score on."""
    names, records, val_records = images(a)
    held_out: list[Record] = []
    if a.held_out:
        records, held_out = split(records, a.held_out)
    data = Data(names, build(records, image_size), val_records, build(val_records, image_size))
    return data, data._replace(val_records=held_out, val=build(held_out, image_size)) if held_out else None


def measure(name: str, conditions: Conditions, data: Data, held_out: Data | None, seed: int, device: str) -> Result:
    """Train and score a detector, and choose its thresholds on the images held out, if there are any."""
    torch.manual_seed(seed)
    detector, now = untrained(name, conditions, data), clock(device)
    started = now()
    detector = train(detector, data.train, settings_of(name, conditions, seed), device)
    minutes = (now() - started) / 60
    chosen = held_out and held_out.report(detector, device).thresholds.choose("images held out")
    return Result(sum(p.numel() for p in detector.parameters()), minutes, data.report(detector, device), chosen)


def cells(results: list[Result], classes: list[str], thresholds: bool) -> list[object]:
    """The numbers of a row; with `thresholds`, also what they give."""
    first, reports = results[0], [result.report for result in results]
    aps = [report.ap for report in reports]
    errors = [report.ece for report in reports if report.ece >= 0]
    rows = [report.per_class[name] for report in reports for name in classes]
    minutes = mean(result.minutes for result in results)
    return [
        f"{first.parameters / 1e6:.1f}",
        f"{minutes:.1f}" if minutes else "-",
        mean(aps),
        mean(report.ap50 for report in reports),
        mean(errors) if errors else "-",
        *(threshold_cells(results) if thresholds else ()),
        *(mean(row[key] for row in rows) for key in ("ap", "ap50") if rows),
        max(aps) - min(aps) if len(aps) > 1 else "-",
    ]


def threshold_cells(results: list[Result]) -> list[object]:
    """Precision and recall at the thresholds, and the greatest recall at a precision of `PRECISION`."""
    points = [result.point for result in results if result.point is not None]
    recalls = [result.report.thresholds.curve.recall_at(PRECISION) for result in results]
    own = [mean(getattr(point, key) for point in points) if points else "-" for key in ("precision", "recall")]
    return [*own, mean(recalls)]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--detectors", nargs="+", choices=(*OURS, *TORCHVISION, *HUGGING_FACE, TUTORIAL), required=True)
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--held-out", type=float, default=0.0)
    parser.add_argument("--classes", nargs="+", default=[])
    a = parser.parse_args()

    if any(name in HUGGING_FACE for name in a.detectors):
        package()
    conditions, seeds = conditions_of_run(a.run, a.device) if a.run else conditions_of_options(a)
    data, held_out = prepare(a, conditions.image_size)
    if unknown := [name for name in a.classes if name not in data.names]:
        raise SystemExit(f"{a.data} has no class {', '.join(unknown)}; it has {', '.join(data.names)}.")
    length = f"{a.minutes:g} minutes of {'CPU' if a.device == 'cpu' else a.device}" if a.minutes else ""
    length = length or f"{conditions.settings['epochs']} epochs"
    size = f"{len(data.train)} images, {conditions.image_size} px, {length}, seeds {' '.join(map(str, seeds))}"
    extra = ["mean AP", f"mean AP50 ({', '.join(a.classes)})"] if a.classes else []
    heads = ["detector", "M parameters", "minutes", "AP", "AP50", "ECE"]
    heads += ["precision", "recall", f"recall at precision {PRECISION}"] if held_out else []
    heads += [*extra, "AP apart"]
    table = Table(f"{datetime.date.today()}, {a.data.name}, {size}", *heads)
    for name in a.detectors:
        print(name, flush=True)
        results = [measure(name, conditions, data, held_out, seed, a.device) for seed in seeds]
        table.add(name, *cells(results, a.classes, bool(held_out)))
    if conditions.own is not None:
        parameters = sum(p.numel() for p in conditions.own.parameters())
        stored = Thresholds.from_card(conditions.own.card)
        result = Result(parameters, 0.0, data.report(conditions.own, a.device), stored if stored.chosen_on else None)
        table.add(f"{registry.name_of(conditions.own)} (the run)", *cells([result], a.classes, bool(held_out)))
    table.append_to(a.write)


if __name__ == "__main__":
    main()

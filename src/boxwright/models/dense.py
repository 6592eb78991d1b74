"""`dense`: every cell of a feature pyramid predicts a box, and one cell remains per object: no anchors, no NMS.

        image ── backbone ──┬─ stride  8 ─┐
                            ├─ stride 16 ─┼─ pyramid ─ towers ┬─ boxes: distances to the four sides, in cells
                            └─ stride 32 ─┘                   └─ many:  class scores, high in several cells per object
                                                                  │
                                        self-attention of the best cells of all levels (duplicate relation)
                                                                  │
                                                              one:  class scores, high in a single cell per object

The `one` scores are what a user sees. Their targets come from one-to-one assignment whose cost includes the class
("What makes for end-to-end object detection?", Sun et al. 2021): all cells of an object but the best must score low.
A cell can only know that another one is better by attending to it, on other levels too: so the best cells attend to
each other, with the overlap and order of their boxes as a bias ("Relation networks for object detection", Hu et al.
2018). The targets of the `many` scores are the best cells of each object (task-aligned assignment, Feng et al. 2021);
they choose the candidates for `one`, and give features and boxes more to learn from than one cell per object could.
"""

import warnings
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from boxwright.boxes import giou, iou
from boxwright.models.backbones.backbone import Backbone
from boxwright.models.layers.class_rows import copy_rows, copy_weights, shared_rows
from boxwright.models.layers.dense_head import DenseHead, FeaturePyramid, predict_cells
from boxwright.models.layers.duplicate_relation import STRENGTH, DuplicateRelationLayer, relation
from boxwright.models.losses.focal import focal_cost
from boxwright.models.losses.hungarian import match
from boxwright.models.losses.task_aligned import assigned_losses, candidates, gather_rows, one_to_many, score_of_label
from boxwright.types import Batch, CellPredictions, Detector, FeatureMaps, Predictions, image_mask, pixels

MIN_OVERLAP = 0.01  # least target of an assigned candidate's score, so that boxes far off learn, too
PEAK = 2.0  # by which the logit of a cell is lowered that is no local maximum, where candidates are chosen
DETECTIONS = 100  # kept per image, as COCO counts
BOX_AND_DUPLICATE = 5  # inputs of the duplicate relation behind features and class scores: box, duplicate score


@dataclass(frozen=True)
class DenseConfig:
    """The architecture of a `dense` detector.

    Attributes:
        backbone: a timm model with feature maps at the strides.
        image_size: side of the canvas, in pixels.
        channels: width of the pyramid and the towers.
        depth: 3x3 convolutions in each tower.
        strides: canvas pixels per cell of each level.
        rivals: number of candidates, the cells of highest `many` score, which attend to each other. About ten cells
            predict the same object, so there should be ten times as many as objects in an image, or five where `lean`.
        convolved: a plain ViT has convolutions in its MLPs instead of a table of position embeddings.
        lean: fast on a CPU. The towers share a convolution before them, which also smooths the pyramid; predictions
            come from 1x1 instead of 3x3 kernels; the candidates attend to each other once instead of twice; and cells
            that score less than one of their eight neighbours become candidates after the others only, so that fewer
            candidates are needed.
    """

    backbone: str = "tf_efficientnet_lite0"
    image_size: int = 320
    channels: int = 96
    depth: int = 2
    strides: tuple[int, ...] = (8, 16, 32)
    rivals: int = 300
    convolved: bool = False
    lean: bool = False


SIZES = {
    "nano": DenseConfig(channels=64, depth=1, rivals=150, lean=True),
    "small": DenseConfig("tf_efficientnet_lite1", image_size=416, channels=128, depth=3, rivals=500),
    "medium": DenseConfig("tf_efficientnet_lite2", image_size=512, channels=160, depth=4, rivals=700),
    "base": DenseConfig(
        "vit_base_patch14_reg4_dinov2", image_size=512, channels=192, depth=4, strides=(4, 8, 16, 32), rivals=700
    ),
}


class DenseOutputs(NamedTuple):
    """Outputs of all Q cells, and of the R candidates among them.

    Attributes:
        many_BQK: class logits, high in several cells per object.
        boxes_BQ4: xyxy in [0, 1] of the canvas.
        centres_Q2: x and y of the cells, in the same unit.
        reach_Q2: their strides; also the least half side of the region in which a cell can be assigned to an object.
        one_BRK: class logits of the candidates, high in a single one per object.
        cells_BR: which cells the candidates are.
    """

    many_BQK: Tensor
    boxes_BQ4: Tensor
    centres_Q2: Tensor
    reach_Q2: Tensor
    one_BRK: Tensor
    cells_BR: Tensor


class Dense(Detector):
    """The detector whose cells predict boxes, without queries or NMS.

    Args:
        config: its architecture.
        names: the classes.
        pretrained: start the backbone from ImageNet weights.
    """

    fp32_modules = ("many", "distance", "rivals")

    def __init__(self, config: DenseConfig, names: tuple[str, ...], pretrained: bool = True):
        super().__init__()
        self.config, self.names, self.image_size = config, tuple(names), config.image_size
        self.backbone = Backbone(config.backbone, config.strides, pretrained, convolved=config.convolved)
        self.pyramid = FeaturePyramid(self.backbone.channels, config.channels, smooth=not config.lean)
        self.head = DenseHead(config.channels, config.depth, len(config.strides), len(names), config.lean)
        self.rivals = DuplicateRelation(config.channels, len(names), layers=1 if config.lean else 2)

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Parameters of the timm network."""
        return self.backbone.known_parameters()

    def forward(self, images_BCHW: Tensor, sizes_B2: Tensor, targets: Batch | None = None) -> DenseOutputs:
        """Scores and boxes of every cell; H and W may be any size, padding is filled with the mean colour."""
        mask_B1HW = image_mask(images_BCHW, sizes_B2)[:, None]
        filled = torch.where(mask_B1HW, pixels(images_BCHW), self.backbone.mean)
        maps = self.pyramid(self.backbone(filled.contiguous(memory_format=torch.channels_last)))
        return self._predict(maps, images_BCHW.shape[-2:])

    def _predict(self, maps: list[Tensor], size: torch.Size) -> DenseOutputs:
        """Predictions of the cells of all levels, in canvas coordinates."""
        cells = predict_cells(self.head, maps, self.config.strides, size)
        cells_BR = cells.best(self.config.rivals, peaks_first(cells.many_BQK, maps) if self.config.lean else None)
        chosen = (gather_rows(x, cells_BR) for x in (cells.features_BQC, cells.many_BQK, cells.boxes_BQ4))
        one_BRK = self.rivals(*chosen).float()
        return DenseOutputs(cells.many_BQK, cells.boxes_BQ4, cells.centres_Q2, cells.reach_Q2, one_BRK, cells_BR)

    def loss(self, outputs: DenseOutputs, batch: Batch) -> dict[str, Tensor]:
        """`one` and `many`: quality focal losses of the two scores; `l1` and `giou`: box losses of both assignments."""
        true_BN4, labels_BN = batch.boxes_BN4, batch.labels_BN
        warn_of_many(batch.valid_BN, outputs.cells_BR.shape[1])
        pairs_BNQ = candidates(outputs.centres_Q2, outputs.reach_Q2, true_BN4, batch.valid_BN)
        boxes_BR4 = gather_rows(outputs.boxes_BQ4, outputs.cells_BR)
        one = assigned_losses(outputs.one_BRK, boxes_BR4, true_BN4, labels_BN, one_to_one(outputs, batch, pairs_BNQ))
        shared_BNQ = one_to_many(outputs.many_BQK, outputs.boxes_BQ4, true_BN4, labels_BN, pairs_BNQ)
        many = assigned_losses(outputs.many_BQK, outputs.boxes_BQ4, true_BN4, labels_BN, shared_BNQ)
        boxes = {key: one[key] + many[key] for key in ("l1", "giou")}
        return {"one": one["class"], "many": many["class"]} | boxes

    @torch.no_grad()
    def decode(self, outputs: DenseOutputs) -> Predictions:
        """The candidates and classes with the highest scores; no suppression."""
        scores_BRK = outputs.one_BRK.sigmoid()
        kept, classes = min(DETECTIONS, scores_BRK[0].numel()), scores_BRK.shape[-1]
        scores_BD, index_BD = scores_BRK.flatten(1).topk(kept)
        cells_BD = outputs.cells_BR.gather(1, index_BD // classes)
        return Predictions(gather_rows(outputs.boxes_BQ4, cells_BD).clamp(0, 1), scores_BD, index_BD % classes)

    def feature_maps(self) -> FeatureMaps:
        """The pyramid."""
        return FeatureMaps(self.pyramid, list(self.config.strides))

    def cell_predictions(self, outputs: DenseOutputs) -> CellPredictions:
        """The `many` scores and the boxes of all cells."""
        return CellPredictions(outputs.many_BQK, outputs.boxes_BQ4)

    def with_classes(self, names: tuple[str, ...], image_size: int | None = None, pretrained: bool = True) -> "Dense":
        """See `Detector`."""
        detector = Dense(replace(self.config, image_size=image_size or self.image_size), names, pretrained=False)
        if pretrained:
            detector.backbone.freeze()
        pairs, width = shared_rows(self.names, range(len(self.names)), names), self.config.channels
        by_row = ("head.many.weight", "head.many.bias", "rivals.leave.weight", "rivals.leave.bias")
        copy_weights(self, detector, {**dict.fromkeys(by_row, pairs), "rivals.enter.weight": []})
        columns = [(n, n) for n in range(width)]  # of the features
        columns += [(width + old, width + new) for old, new in pairs]
        columns += [(-n, -n) for n in range(1, BOX_AND_DUPLICATE + 1)]
        copy_rows(self.rivals.enter.weight.detach().T, detector.rivals.enter.weight.detach().T, columns)
        return detector


class DuplicateRelation(nn.Module):
    """Self-attention of the candidates: each lowers its scores if another predicts the same object better."""

    def __init__(self, width: int, classes: int, layers: int, heads: int = 8):
        super().__init__()
        self.enter = nn.Linear(width + classes + BOX_AND_DUPLICATE, width)
        self.layers = nn.ModuleList(DuplicateRelationLayer(width, heads) for _ in range(layers))
        self.leave = nn.Linear(width, classes)
        self.strength = nn.Parameter(torch.tensor(STRENGTH))  # begins as Soft-NMS (Bodla et al. 2017), then learns
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, features_BRC: Tensor, many_BRK: Tensor, boxes_BR4: Tensor) -> Tensor:
        """Class logits (B, R, K), corrected; no gradient flows back to boxes and `many` scores from here."""
        many_BRK, boxes_BR4 = many_BRK.detach(), boxes_BR4.detach()
        relation_B4RR = relation(many_BRK, boxes_BR4)
        duplicate_BR1 = relation_B4RR[:, -1].amax(-1, keepdim=True)
        x_BRC = self.enter(torch.cat([features_BRC, many_BRK, boxes_BR4, duplicate_BR1], -1))
        for layer in self.layers:
            x_BRC = layer(x_BRC, relation_B4RR)
        return many_BRK - self.strength * duplicate_BR1.square() + self.leave(x_BRC)


@torch.no_grad()
def peaks_first(many_BQK: Tensor, maps: list[Tensor]) -> Tensor:
    """Scores (B, Q) to choose candidates by: each cell's best logit, lowered by `PEAK` where a neighbour has a higher.

    So that a few candidates cover many objects, instead of all cells of the best ones.

    Args:
        many_BQK: logits of the cells of all levels, finest first.
        maps: (B, C, H, W) of each level.
    """
    best_BQ = many_BQK.amax(-1)
    levels = best_BQ.split([x.shape[-2] * x.shape[-1] for x in maps], dim=1)
    grids = (level.unflatten(1, (1, *x.shape[-2:])) for level, x in zip(levels, maps, strict=True))
    highest_BQ = torch.cat([F.max_pool2d(grid, 3, stride=1, padding=1).flatten(1) for grid in grids], 1)
    return best_BQ - PEAK * (best_BQ < highest_BQ)


def warn_of_many(valid_BN: Tensor, candidates: int) -> None:
    """Say once that an image has more objects than can be learned, or found."""
    for most, what in ((candidates, "candidates of a dense: only as many as fit are learned"),
                       (DETECTIONS, "that a dense finds in one: it misses the others")):  # fmt: skip
        if valid_BN.shape[1] > most and bool((valid_BN.sum(1) > most).any()):
            warnings.warn(f"an image has more objects than the {most} {what}; cut images into tiles.", stacklevel=3)


@torch.no_grad()
def one_to_one(outputs: DenseOutputs, batch: Batch, pairs_BNQ: Tensor) -> Tensor:
    """IoU of each object with the candidate of least cost, (B, N, R), else 0. Cost: 2 focal + 5 L1 + 2 (1 - GIoU)."""
    pairs_BNR = pairs_BNQ.gather(2, outputs.cells_BR[:, None].expand(-1, pairs_BNQ.shape[1], -1))
    score_BNR = score_of_label(outputs.one_BRK, batch.labels_BN)
    true_BN14, predicted_B1R4 = batch.boxes_BN4[:, :, None], gather_rows(outputs.boxes_BQ4, outputs.cells_BR)[:, None]
    distance_BNR = (true_BN14 - predicted_B1R4).abs().sum(-1)
    cost_BNR = 2 * focal_cost(score_BNR) + 5 * distance_BNR + 2 * (1 - giou(true_BN14, predicted_B1R4))
    matched_BN = match(cost_BNR.masked_fill(~pairs_BNR, 1e6), batch.valid_BN)
    chosen_BNR = F.one_hot(matched_BN.clamp(min=0), outputs.cells_BR.shape[1]) * (matched_BN >= 0)[..., None]
    return chosen_BNR * pairs_BNR * iou(true_BN14, predicted_B1R4).clamp(min=MIN_OVERLAP)

"""`dense`: every cell of a feature pyramid votes, and one cell wins per object: no anchors, no NMS.

        image ── backbone ──┬─ stride  8 ─┐
                            ├─ stride 16 ─┼─ pyramid ─ tower ┬─ box: distances to the four sides, in cells
                            └─ stride 32 ─┘                  ├─ many: class scores, several cells an object
                                                             └─ one: class scores, a single cell an object

The `one` scores are what a user sees: one-to-one assignment whose cost includes the class teaches the network to keep
quiet in all cells but the best ("What makes for end-to-end object detection?", Sun et al. 2021). Such sparse targets
teach slowly, so in training the `many` scores see the best cells of each object (task-aligned assignment, Feng et al.
2021) and shape the features and boxes; they cost nothing at inference.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from boxwright.boxes import giou, iou
from boxwright.models.backbone import Backbone
from boxwright.models.losses import across_devices, focal_cost, quality_focal
from boxwright.models.matcher import match
from boxwright.types import Batch, Detector, Predictions, image_mask, pixels

PRIOR = 0.01  # the score of an untrained cell, so that the many negatives do not swamp the first steps
CANDIDATES = 10  # cells an object teaches in the `many` branch
DETECTIONS = 100  # kept per image, as COCO counts


@dataclass(frozen=True)
class DenseConfig:
    """The shape of a `dense` detector.

    Attributes:
        backbone: a timm model with feature maps at the strides.
        image_size: side of the canvas, in pixels.
        channels: width of the pyramid and the towers.
        depth: 3x3 convolutions in each tower.
        strides: input pixels per cell of each level.
        one_to_many: train the dense branch beside the one-to-one branch.
    """

    backbone: str = "tf_efficientnet_lite0"
    image_size: int = 320
    channels: int = 96
    depth: int = 2
    strides: tuple[int, ...] = (8, 16, 32)
    one_to_many: bool = True


SIZES = {
    "nano": DenseConfig(),
    "small": DenseConfig("tf_efficientnet_lite1", image_size=416, channels=128, depth=3),
    "medium": DenseConfig("tf_efficientnet_lite2", image_size=512, channels=160, depth=4),
}


class Raw(NamedTuple):
    """Outputs of all Q cells of all levels. Boxes and centres are in [0, 1] of the canvas."""

    one_BQK: Tensor
    many_BQK: Tensor
    boxes_BQ4: Tensor
    centres_Q2: Tensor
    reach_Q2: Tensor  # half the smallest region that a cell of this level answers for


class Dense(Detector):
    """The plain detector of cells that vote.

    Args:
        config: its shape.
        names: the classes.
        pretrained: start the backbone from ImageNet weights.
    """

    def __init__(self, config: DenseConfig, names: tuple[str, ...], pretrained: bool = True):
        super().__init__()
        self.config, self.names, self.image_size = config, tuple(names), config.image_size
        self.backbone = Backbone(config.backbone, config.strides, pretrained)
        self.pyramid = Pyramid(self.backbone.channels, config.channels)
        self.head = Head(config.channels, config.depth, len(config.strides), len(names))

    def backbone_parameters(self) -> list[nn.Parameter]:
        """The timm network's."""
        return list(self.backbone.parameters())

    def forward(self, images_BCHW: Tensor, sizes_B2: Tensor) -> Raw:
        """Scores and boxes of every cell; H and W may be any size, padding is filled with the mean colour."""
        mask_B1HW = image_mask(images_BCHW, sizes_B2)[:, None]
        filled = torch.where(mask_B1HW, pixels(images_BCHW), self.backbone.mean)
        maps = self.pyramid(self.backbone(filled.contiguous(memory_format=torch.channels_last)))
        one, many, distances = zip(*(self.head(x, level) for level, x in enumerate(maps)), strict=True)
        centres_Q2, reach_Q2 = self._cells(maps, images_BCHW.shape[-2:])
        distances_BQ4 = torch.cat(distances, 1).float() * reach_Q2.repeat(1, 2)
        boxes_BQ4 = torch.cat([centres_Q2 - distances_BQ4[..., :2], centres_Q2 + distances_BQ4[..., 2:]], -1)
        return Raw(torch.cat(one, 1).float(), torch.cat(many, 1).float(), boxes_BQ4, centres_Q2, reach_Q2)

    def _cells(self, maps: list[Tensor], size: torch.Size) -> tuple[Tensor, Tensor]:
        """Centres and strides of all cells, as fractions of the canvas, (Q, 2) each, x first."""
        canvas = torch.tensor([size[1], size[0]], device=maps[0].device)
        centres, strides = [], []
        for x, stride in zip(maps, self.config.strides, strict=True):
            rows, columns = (torch.arange(n, device=x.device) + 0.5 for n in x.shape[-2:])
            grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).flatten(0, 1)
            centres.append(grid * stride / canvas)
            strides.append((stride / canvas).expand_as(grid))
        return torch.cat(centres), torch.cat(strides)

    def loss(self, raw: Raw, batch: Batch) -> dict[str, Tensor]:
        """`one`: quality focal loss of the one-to-one scores; `many`: of the one-to-many scores; `l1`, `giou`: of boxes."""
        pairs_BNQ = candidates(raw, batch)
        one = self._branch(raw, batch, raw.one_BQK, one_to_one(raw, batch, pairs_BNQ))
        losses = {"one": one["class"], "l1": one["l1"], "giou": one["giou"]}
        if self.config.one_to_many:
            many = self._branch(raw, batch, raw.many_BQK, one_to_many(raw, batch, pairs_BNQ))
            losses = {"one": one["class"], "many": many["class"]}
            losses |= {key: one[key] + many[key] for key in ("l1", "giou")}
        return losses

    def _branch(self, raw: Raw, batch: Batch, logits_BQK: Tensor, quality_BNQ: Tensor) -> dict[str, Tensor]:
        """Losses of one branch, given the quality (wanted score) of each assigned pair, 0 elsewhere."""
        total = across_devices(quality_BNQ.sum())
        image, obj, cell = quality_BNQ.nonzero(as_tuple=True)
        weight = quality_BNQ[image, obj, cell]
        wanted_BQK = torch.zeros_like(logits_BQK)
        wanted_BQK[image, cell, batch.labels_BN[image, obj]] = weight
        said, truth = raw.boxes_BQ4[image, cell], batch.boxes_BN4[image, obj]
        return {
            "class": quality_focal(logits_BQK, wanted_BQK).sum() / total,
            "l1": 5 * ((said - truth).abs().sum(-1) * weight).sum() / total,
            "giou": 2 * ((1 - giou(said, truth)) * weight).sum() / total,
        }

    @torch.no_grad()
    def decode(self, raw: Raw) -> Predictions:
        """The cells and classes with the highest one-to-one scores; there is nothing to suppress."""
        scores_BQK = raw.one_BQK.sigmoid()
        kept = min(DETECTIONS, scores_BQK[0].numel())
        scores_BD, index_BD = scores_BQK.flatten(1).topk(kept)
        cell_BD1 = (index_BD // scores_BQK.shape[-1])[..., None]
        boxes_BD4 = raw.boxes_BQ4.gather(1, cell_BD1.expand(-1, -1, 4))
        return Predictions(boxes_BD4.clamp(0, 1), scores_BD, index_BD % scores_BQK.shape[-1])


class Pyramid(nn.Module):
    """A feature pyramid (Lin et al. 2017): coarse levels are added to finer ones, top down."""

    def __init__(self, channels: list[int], width: int):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps of one width, finest first as given."""
        maps = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        for level in range(len(maps) - 2, -1, -1):
            maps[level] = maps[level] + F.interpolate(maps[level + 1], size=maps[level].shape[-2:], mode="nearest")
        return [smooth(x) for smooth, x in zip(self.smooth, maps, strict=True)]


class Head(nn.Module):
    """Two towers that all levels share; only the scale of the distances is each level's own (FCOS, Tian et al. 2019)."""

    def __init__(self, width: int, depth: int, levels: int, classes: int):
        super().__init__()
        self.class_tower = nn.Sequential(*(_block(width) for _ in range(depth)))
        self.box_tower = nn.Sequential(*(_block(width) for _ in range(depth)))
        self.select = _block(width)  # looks around a cell, to tell whether a neighbour does better
        self.one, self.many = nn.Conv2d(width, classes, 1), nn.Conv2d(width, classes, 1)
        self.distance = nn.Conv2d(width, 4, 3, padding=1)
        self.log_scale = nn.Parameter(torch.zeros(levels))
        for scores in (self.one, self.many):
            nn.init.constant_(scores.bias, -torch.log(torch.tensor(1 / PRIOR - 1)).item())  # type: ignore[arg-type]

    def forward(self, x_BCHW: Tensor, level: int) -> tuple[Tensor, Tensor, Tensor]:
        """One-to-one scores, one-to-many scores (B, HW, K; logits) and distances (B, HW, 4; in cells, >= 0)."""
        said = self.class_tower(x_BCHW)
        distances = self.distance(self.box_tower(x_BCHW)) + 1
        outputs = self.one(self.select(said)), self.many(said), F.softplus(distances) * self.log_scale[level].exp()
        one, many, sides = (y.flatten(2).transpose(1, 2) for y in outputs)
        return one, many, sides


def _block(width: int) -> nn.Sequential:
    conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(width // 8, width), nn.ReLU(inplace=True))


def candidates(raw: Raw, batch: Batch) -> Tensor:
    """(B, N, Q) bool: cells whose centre lies in the object, or within a cell's reach of the centre of a small one."""
    low, high = batch.boxes_BN4[:, :, None, :2], batch.boxes_BN4[:, :, None, 2:]
    reach_BNQ2 = torch.maximum((high - low) / 2, raw.reach_Q2)
    inside_BNQ = ((raw.centres_Q2 - (low + high) / 2).abs() < reach_BNQ2).all(-1)
    return inside_BNQ & batch.valid_BN[..., None]


@torch.no_grad()
def one_to_one(raw: Raw, batch: Batch, pairs_BNQ: Tensor) -> Tensor:
    """Quality (IoU) of the one cell of least cost per object: 2 x focal + 5 x L1 + 2 x (1 - GIoU); (B, N, Q), else 0."""
    score_BNQ = _score_of_label(raw.one_BQK, batch.labels_BN)
    truth_BN14, said_B1Q4 = batch.boxes_BN4[:, :, None], raw.boxes_BQ4[:, None]
    distance_BNQ = (truth_BN14 - said_B1Q4).abs().sum(-1)
    cost_BNQ = 2 * focal_cost(score_BNQ) + 5 * distance_BNQ + 2 * (1 - giou(truth_BN14, said_B1Q4))
    matched_BN = match(cost_BNQ.masked_fill(~pairs_BNQ, 1e6), batch.valid_BN)
    chosen_BNQ = F.one_hot(matched_BN.clamp(min=0), pairs_BNQ.shape[-1]) * (matched_BN >= 0)[..., None]
    quality_BNQ = iou(truth_BN14, said_B1Q4)
    return chosen_BNQ * quality_BNQ.clamp(min=PRIOR)  # a box still far off must learn, too


@torch.no_grad()
def one_to_many(raw: Raw, batch: Batch, pairs_BNQ: Tensor) -> Tensor:
    """Quality of the best-aligned cells of each object (TOOD, Feng et al. 2021, eq. 1); (B, N, Q), else 0.

    Alignment is score^0.5 x IoU^6. A cell wanted by several objects goes to the one it overlaps most, and the best
    cell of an object is asked for a score equal to its IoU, the others for proportionally less.
    """
    iou_BNQ = iou(batch.boxes_BN4[:, :, None], raw.boxes_BQ4[:, None])
    align_BNQ = _score_of_label(raw.many_BQK, batch.labels_BN).sqrt() * iou_BNQ**6 * pairs_BNQ
    count = min(CANDIDATES, align_BNQ.shape[-1])
    best_BNQ = torch.zeros_like(pairs_BNQ).scatter_(-1, align_BNQ.topk(count).indices, True) & pairs_BNQ
    owner_BQ = iou_BNQ.masked_fill(~best_BNQ, -1).argmax(1)
    best_BNQ &= F.one_hot(owner_BQ, pairs_BNQ.shape[1]).transpose(1, 2).bool()
    align_BNQ = align_BNQ * best_BNQ
    tiny = torch.finfo(align_BNQ.dtype).tiny
    relative_BNQ = align_BNQ / align_BNQ.amax(-1, keepdim=True).clamp(min=tiny)
    return relative_BNQ * (iou_BNQ * best_BNQ).amax(-1, keepdim=True)


def _score_of_label(logits_BQK: Tensor, labels_BN: Tensor) -> Tensor:
    """(B, N, Q): each cell's score for each object's class."""
    index_BQN = labels_BN[:, None].expand(-1, logits_BQK.shape[1], -1)
    return logits_BQK.sigmoid().gather(2, index_BQN).transpose(1, 2)

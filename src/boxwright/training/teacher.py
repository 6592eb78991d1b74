"""Distillation: a trained detector, the teacher, adds targets to those annotated.

        images ──┬── student ── its own loss, on annotated objects and pseudo-labels of the teacher
                 │      │  └─── `attention`: where its feature maps are active, compared with the teacher's
                 │      └────── `soft`, `soft_giou`: scores and boxes of its cells, compared with the teacher's
                 └── teacher (at the image size it was trained at; frozen)

- Feature maps are compared by where they are active, whatever their channels ("Paying more attention to attention",
  Zagoruyko & Komodakis 2017, section 3.1), at the strides that both have, within the valid area.
- Objects that the teacher detects and nobody annotated become pseudo-labels; that works for every pair of detectors.
- Where both predict an object in each cell, as `dense` does, the teacher's scores are soft targets of the quality focal
  loss ("Generalized focal loss", Li et al. 2020), and its boxes are targets of a GIoU loss weighted by its scores.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from boxwright.boxes import giou, iou
from boxwright.checkpoints.lora import checksum
from boxwright.config import require
from boxwright.models.losses.focal import quality_focal
from boxwright.models.losses.normaliser import normaliser
from boxwright.types import Batch, Detector, Predictions, pixels

MIN_SCORE = 0.5  # of a pseudo-label
MAX_IOU = 0.5  # of a pseudo-label with an annotated object, or with a better pseudo-label
ATTENTION, SOFT, SOFT_GIOU = 5.0, 4.0, 6.0  # weights
Level = tuple[int, int, int]  # index of the student's and of the teacher's map of the same stride, and that stride
Cells = tuple[Tensor, Sequence[Tensor]]  # values of all cells (B, Q, X), and the maps that the cells belong to


class Teacher(nn.Module):
    """A frozen detector, always in evaluation mode, that a student learns from.

    Args:
        detector: the teacher.
        student: learns from it about the classes that both have.

    Attributes:
        known: the student's classes that the teacher has, too.
        checksum: of the teacher's weights.

    Raises:
        UserError: if they have no class in common.
    """

    def __init__(self, detector: Detector, student: Detector):
        super().__init__()
        self.known = [name for name in student.names if name in detector.names]
        classes = f"{', '.join(student.names)}, but {', '.join(detector.names)}"
        require(self.known, f"the teacher knows none of the classes {classes}; give one that was trained on some.")
        self.detector = detector.eval().requires_grad_(False)
        self.checksum = checksum(detector.state_dict())
        own, other = student.feature_maps().strides, detector.feature_maps().strides
        self.levels = [(own.index(stride), other.index(stride), stride) for stride in own if stride in other]

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in evaluation mode."""
        return super().train(False)

    def losses(self, student: Detector, batch: Batch) -> dict[str, Tensor]:
        """Named losses of a batch: the student's own, and those that the teacher adds."""
        with torch.no_grad(), collected_maps(self.detector) as teacher_maps:
            teacher_outputs = self.detector(*resized(batch, self.detector.image_size))
            found = self.detector.decode(teacher_outputs)
            targets = with_pseudo_labels(batch, found, self.detector.names, student.names)
            teacher_cells = self.detector.cell_predictions(teacher_outputs)
        with collected_maps(student) as maps:
            outputs = student(batch.images_BCHW, batch.sizes_B2, targets)
        losses, cells = dict(student.loss(outputs, targets)), student.cell_predictions(outputs)
        zoom = self.detector.image_size / batch.images_BCHW.shape[-1]
        if self.levels:
            pairs = [(maps[own], teacher_maps[other], stride) for own, other, stride in self.levels]
            losses["attention"] = ATTENTION * attention_loss(pairs, batch.sizes_B2, zoom)
        if self.levels and cells is not None and teacher_cells is not None:
            own, other = ([detector.names.index(x) for x in self.known] for detector in (student, self.detector))
            logits_BQX = torch.cat([cells.logits_BQK[..., own], cells.boxes_BQ4], -1)
            scores_BQX = torch.cat([teacher_cells.logits_BQK[..., other].sigmoid(), teacher_cells.boxes_BQ4], -1)
            losses |= cell_losses(*paired_cells(self.levels, (logits_BQX, maps), (scores_BQX, teacher_maps), zoom))
        return losses


@contextmanager
def collected_maps(detector: Detector) -> Iterator[list[Tensor]]:
    """A list to which the forward pass of `detector` adds its feature maps (B, C, H, W)."""
    maps: list[Tensor] = []
    hook = detector.feature_maps().module.register_forward_hook(lambda _, inputs, outputs: maps.extend(outputs))
    try:
        yield maps
    finally:
        hook.remove()


def resized(batch: Batch, side: int) -> tuple[Tensor, Tensor]:
    """Images and their sizes on a canvas of another side; a detector is best at the side that it was trained at."""
    images_BCHW, own = pixels(batch.images_BCHW).float(), batch.images_BCHW.shape[-1]
    if side == own:
        return images_BCHW, batch.sizes_B2
    images_BCHW = F.interpolate(images_BCHW, size=(side, side), mode="bilinear", antialias=True)
    return images_BCHW, (batch.sizes_B2 * side / own).round().long().clamp(1, side)


def with_pseudo_labels(
    batch: Batch, found: Predictions, teacher_names: Sequence[str], student_names: Sequence[str]
) -> Batch:
    """The batch and, as further objects, what the teacher is sure of, of classes that the student has.

    Left out is what overlaps an annotated object, or a pseudo-label of higher score.

    Args:
        batch: with labels of `student_names`.
        found: by the teacher, best first, with labels of `teacher_names`.
        teacher_names, student_names: the classes of each.
    """
    labels = [student_names.index(name) if name in student_names else -1 for name in teacher_names]
    labels_BD = torch.tensor(labels, device=batch.labels_BN.device)[found.labels_BD]
    iou_BDN = iou(found.boxes_BD4[:, :, None], batch.boxes_BN4[:, None]) * batch.valid_BN[:, None]
    new_BD = (found.scores_BD > MIN_SCORE) & (labels_BD >= 0) & (iou_BDN.amax(-1) < MAX_IOU)
    near_BDD = iou(found.boxes_BD4[:, :, None], found.boxes_BD4[:, None]) >= MAX_IOU
    new_BD &= ~(near_BDD & new_BD[:, None]).tril(-1).any(-1)  # those before have higher scores
    valid_BN = torch.cat([batch.valid_BN, new_BD], 1)
    order_BN = valid_BN.byte().argsort(dim=1, descending=True, stable=True)[:, : max(1, int(valid_BN.sum(1).max()))]
    valid_BN = valid_BN.gather(1, order_BN)
    labels_BN = torch.cat([batch.labels_BN, labels_BD], 1).gather(1, order_BN) * valid_BN
    boxes_BN4 = torch.cat([batch.boxes_BN4, found.boxes_BD4.to(batch.boxes_BN4.dtype)], 1)
    boxes_BN4 = boxes_BN4.gather(1, order_BN[..., None].expand(-1, -1, 4)) * valid_BN[..., None]
    return replace(batch, boxes_BN4=boxes_BN4, labels_BN=labels_BN, valid_BN=valid_BN)


def attention_loss(pairs: Sequence[tuple[Tensor, Tensor, int]], sizes_B2: Tensor, zoom: float) -> Tensor:
    """Squared distance of the student's and the teacher's attention, the mean over images and strides; from 0 to 2.

    Attention is the mean over channels of a map's squares, scaled to length 1 over the valid area.

    Args:
        pairs: maps (B, C, H, W) of student and teacher, and their stride.
        sizes_B2: height and width of the valid area on the student's canvas, in pixels.
        zoom: side of the teacher's canvas divided by that of the student's.
    """
    distances = []
    for own_BCHW, other_BCHW, stride in pairs:
        shape = own_BCHW.shape[-2:]
        rows_BH1, columns_B1W = (
            (torch.arange(n, device=sizes_B2.device) * stride < sizes_B2[:, axis, None]).unsqueeze(2 - axis)
            for axis, n in enumerate(shape)
        )
        own_BHW, other_BHW = (x_BCHW.float().square().mean(1) for x_BCHW in (own_BCHW, other_BCHW))
        other_BHW = sampled(other_BHW[:, None], shape, zoom, "bilinear")[:, 0]
        own_BP, other_BP = (
            F.normalize((x_BHW * rows_BH1 * columns_B1W).flatten(1), dim=1) for x_BHW in (own_BHW, other_BHW)
        )
        distances.append((own_BP - other_BP).square().sum(1).mean())
    return torch.stack(distances).mean()


def cell_losses(logits_BQX: Tensor, scores_BQX: Tensor) -> dict[str, Tensor]:
    """`soft` (of scores) and `soft_giou` (of boxes), divided by the sum over cells of the teacher's best score.

    Args:
        logits_BQX: of the student's cells: a logit for each class that the teacher knows, and the box.
        scores_BQX: of the teacher's cells at the same positions: a score for each class, and the box.
    """
    scores_BQK = scores_BQX[..., :-4]
    weight_BQ = scores_BQK.amax(-1)
    total = normaliser(weight_BQ.sum())
    distance_BQ = 1 - giou(logits_BQX[..., -4:], scores_BQX[..., -4:])
    return {
        "soft": SOFT * quality_focal(logits_BQX[..., :-4], scores_BQK).sum() / total,
        "soft_giou": SOFT_GIOU * (distance_BQ * weight_BQ).sum() / total,
    }


def paired_cells(levels: Sequence[Level], own: Cells, other: Cells, zoom: float) -> tuple[Tensor, Tensor]:
    """The student's cells at the shared strides and, for each, the teacher's nearest cell of the same stride; 0 beyond
    the teacher's canvas.

    Args:
        levels: the shared strides.
        own, other: all cells of student and teacher.
        zoom: side of the teacher's canvas divided by that of the student's.
    """
    (own_BQX, own_maps), (other_BQX, other_maps) = own, other
    own_levels, other_levels = _by_map(own_BQX, own_maps), _by_map(other_BQX, other_maps)
    nearest = []
    for n, m, _ in levels:
        other_BXHW = other_levels[m].transpose(1, 2).unflatten(2, other_maps[m].shape[-2:])
        nearest.append(sampled(other_BXHW, own_maps[n].shape[-2:], zoom, "nearest").flatten(2).transpose(1, 2))
    return torch.cat([own_levels[n] for n, _, _ in levels], 1), torch.cat(nearest, 1)


def _by_map(cells_BQX: Tensor, maps: Sequence[Tensor]) -> Sequence[Tensor]:
    return cells_BQX.split([map_BCHW.shape[-2] * map_BCHW.shape[-1] for map_BCHW in maps], 1)


def sampled(map_BCHW: Tensor, shape: Sequence[int], zoom: float, mode: str) -> Tensor:
    """A map of the teacher at the centres of the student's cells, (B, C, *shape); 0 beyond its edge.

    Both begin at the top left and have the same stride; their canvases may differ in size.
    """
    height, width = map_BCHW.shape[-2:]
    y_H, x_W = (
        (torch.arange(n, device=map_BCHW.device) + 0.5) * 2 * zoom / size - 1
        for n, size in zip(shape, (height, width), strict=True)
    )
    grid_BHW2 = torch.stack(torch.meshgrid(x_W, y_H, indexing="xy"), -1).expand(len(map_BCHW), -1, -1, -1)
    return F.grid_sample(map_BCHW.float(), grid_BHW2, mode=mode, align_corners=False)

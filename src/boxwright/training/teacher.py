"""A trained detector as the teacher of another: what it sees and what it finds are targets beside what is annotated.

        images ──┬── student ── its own loss, of what is annotated and what else the teacher finds
                 │      │  └─── `attention`: where its maps are active, as the teacher's are
                 │      └────── `soft`, `soft_giou`: scores and boxes of its cells, as those of the teacher's
                 └── teacher (at the image size that it was made for; does not learn)

- Maps are compared by where they are active, whatever their channels ("Paying more attention to attention", Zagoruyko
  & Komodakis 2017, section 3.1), at the strides that both have, on the part that is image.
- What the teacher finds and nobody annotated becomes an object of the batch; that works for detectors of every kind.
- Where both are a `dense`, each cell's scores and box are taught besides: scores as soft targets of the quality focal
  loss ("Generalized focal loss", Li et al. 2020), boxes by GIoU weighted by the teacher's score.
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
from boxwright.models.losses.focal import across_devices, quality_focal
from boxwright.types import Batch, Detector, Predictions, pixels

SURE = 0.5  # the score over which the teacher is believed in what nobody annotated
APART = 0.5  # the overlap under which it is another object than those annotated
ATTENTION, SOFT, SOFT_GIOU = 5.0, 4.0, 6.0  # weights
Level = tuple[int, int, int]  # places of the student's and the teacher's map of a stride, and that stride
CellOutputs = tuple[Tensor, Sequence[Tensor]]


class Teacher(nn.Module):
    """A detector that a student follows. It is always in evaluation mode, and its weights rest.

    Args:
        detector: the teacher.
        student: whose classes are taught, as far as the teacher knows them.

    Raises:
        UserError: if they have no class in common.
    """

    def __init__(self, detector: Detector, student: Detector):
        super().__init__()
        self.known = [name for name in student.names if name in detector.names]
        classes = f"{', '.join(student.names)}, but {', '.join(detector.names)}"
        require(self.known, f"the teacher knows none of the classes {classes}; give one that was trained on some.")
        self.detector = detector.eval().requires_grad_(False)
        own, other = student.feature_maps().strides, detector.feature_maps().strides
        self.checksum = checksum(detector.state_dict())
        self.levels = [(own.index(stride), other.index(stride), stride) for stride in own if stride in other]

    def train(self, mode: bool = True) -> "Teacher":
        """Evaluation mode, whatever is asked for."""
        return super().train(False)

    def losses(self, student: Detector, batch: Batch) -> dict[str, Tensor]:
        """Named losses of a batch: the student's own, and those that the teacher adds."""
        with torch.no_grad(), maps_of(self.detector) as shown:
            outputs = self.detector(*resized(batch, self.detector.image_size))
            more = with_found(batch, self.detector.decode(outputs), self.detector.names, student.names)
            other_cells = self.detector.cell_predictions(outputs)
        with maps_of(student) as maps:
            outputs = student(batch.images_BCHW, batch.sizes_B2, more)
        losses = dict(student.loss(outputs, more))
        own_cells = student.cell_predictions(outputs)
        zoom = self.detector.image_size / batch.images_BCHW.shape[-1]
        if self.levels:
            pairs = [(maps[own], shown[other], stride) for own, other, stride in self.levels]
            losses["attention"] = ATTENTION * attention_loss(pairs, batch.sizes_B2, zoom)
        if self.levels and own_cells is not None and other_cells is not None:
            own, other = ([names.index(x) for x in self.known] for names in (student.names, self.detector.names))
            own_BQX = torch.cat([own_cells.logits_BQK[..., own], own_cells.boxes_BQ4], -1)
            other_BQX = torch.cat([other_cells.logits_BQK[..., other].sigmoid(), other_cells.boxes_BQ4], -1)
            losses |= cell_losses(*cells_at(self.levels, (own_BQX, maps), (other_BQX, shown), zoom))
        return losses


@contextmanager
def maps_of(detector: Detector) -> Iterator[list[Tensor]]:
    """A list that is filled with the maps (B, C, h, w) when the detector looks at a batch."""
    maps: list[Tensor] = []
    hook = detector.feature_maps().module.register_forward_hook(lambda _, given, made: maps.extend(made))
    try:
        yield maps
    finally:
        hook.remove()


def resized(batch: Batch, side: int) -> tuple[Tensor, Tensor]:
    """Images and their sizes on a canvas of this side: a detector is best at the image size that it was made for."""
    images_BCHW, own = pixels(batch.images_BCHW).float(), batch.images_BCHW.shape[-1]
    if side == own:
        return images_BCHW, batch.sizes_B2
    images_BCHW = F.interpolate(images_BCHW, size=(side, side), mode="bilinear", antialias=True)
    return images_BCHW, (batch.sizes_B2 * side / own).round().long().clamp(1, side)


def with_found(batch: Batch, found: Predictions, known: Sequence[str], names: Sequence[str]) -> Batch:
    """The batch, and what the teacher is sure of and overlaps nothing annotated nor anything it is surer of, where its
    class is one of the batch.

    Args:
        batch: with classes `names`.
        found: by the teacher, with classes `known`.
        known, names: these classes.
    """
    labels_K = torch.tensor([names.index(name) if name in names else -1 for name in known]).to(batch.labels_BN.device)
    labels_BD = labels_K[found.labels_BD]
    iou_BDN = iou(found.boxes_BD4[:, :, None], batch.boxes_BN4[:, None]) * batch.valid_BN[:, None]
    new_BD = (found.scores_BD > SURE) & (labels_BD >= 0) & (iou_BDN.amax(-1) < APART)
    near_BDD = iou(found.boxes_BD4[:, :, None], found.boxes_BD4[:, None]) >= APART
    new_BD &= ~(near_BDD & new_BD[:, None]).tril(-1).any(-1)  # finds are best first
    valid_BN = torch.cat([batch.valid_BN, new_BD], 1)
    order_BN = valid_BN.byte().argsort(dim=1, descending=True, stable=True)[:, : max(1, int(valid_BN.sum(1).max()))]
    valid_BN = valid_BN.gather(1, order_BN)
    labels_BN = torch.cat([batch.labels_BN, labels_BD], 1).gather(1, order_BN) * valid_BN
    boxes_BN4 = torch.cat([batch.boxes_BN4, found.boxes_BD4.to(batch.boxes_BN4.dtype)], 1)
    boxes_BN4 = boxes_BN4.gather(1, order_BN[..., None].expand(-1, -1, 4)) * valid_BN[..., None]
    return replace(batch, boxes_BN4=boxes_BN4, labels_BN=labels_BN, valid_BN=valid_BN)


def attention_loss(pairs: Sequence[tuple[Tensor, Tensor, int]], sizes_B2: Tensor, zoom: float) -> Tensor:
    """Squared distance of the student's and the teacher's attention, the mean over images and strides; from 0 to 2.

    Attention is the mean over channels of a map's squares, scaled to length 1 over the part that is image.

    Args:
        pairs: maps (B, C, h, w) of student and teacher, and their stride.
        sizes_B2: height and width of the part of the student's canvas that is image.
        zoom: side of the teacher's canvas, in sides of the student's.
    """
    terms = []
    for own_BCHW, other_BCHW, stride in pairs:
        shape = own_BCHW.shape[-2:]
        rows_BH1, columns_B1W = (
            (torch.arange(n, device=sizes_B2.device) * stride < sizes_B2[:, axis, None]).unsqueeze(2 - axis)
            for axis, n in enumerate(shape)
        )
        own_BHW, other_BHW = (x_BCHW.float().square().mean(1) for x_BCHW in (own_BCHW, other_BCHW))
        other_BHW = look_up(other_BHW[:, None], shape, zoom, "bilinear")[:, 0]
        own_BP, other_BP = (
            F.normalize((x_BHW * rows_BH1 * columns_B1W).flatten(1), dim=1) for x_BHW in (own_BHW, other_BHW)
        )
        terms.append((own_BP - other_BP).square().sum(1).mean())
    return torch.stack(terms).mean()


def cell_losses(own_BQX: Tensor, other_BQX: Tensor) -> dict[str, Tensor]:
    """`soft` and `soft_giou`, of scores and boxes of cells, relative to the sum of the teacher's best scores.

    Args:
        own_BQX: of the student: a logit for each class that the teacher knows, and the box.
        other_BQX: of the teacher, of the same places: a score for each class, and the box.
    """
    scores_BQK = other_BQX[..., :-4]
    weight_BQ = scores_BQK.amax(-1)
    total = across_devices(weight_BQ.sum())
    apart_BQ = 1 - giou(own_BQX[..., -4:], other_BQX[..., -4:])
    return {
        "soft": SOFT * quality_focal(own_BQX[..., :-4], scores_BQK).sum() / total,
        "soft_giou": SOFT_GIOU * (apart_BQ * weight_BQ).sum() / total,
    }


def cells_at(levels: Sequence[Level], own: CellOutputs, other: CellOutputs, zoom: float) -> tuple[Tensor, Tensor]:
    """The student's cells on the maps of shared strides, and for each the teacher's nearest one of the same stride; 0
    beyond the teacher's canvas.

    Args:
        levels: the shared strides.
        own, other: what all cells of student and teacher say (B, Q, X), and the maps that they are of.
        zoom: side of the teacher's canvas, in sides of the student's.
    """
    (own_BQX, maps), (other_BQX, shown) = own, other
    own_levels, other_levels = _by_map(own_BQX, maps), _by_map(other_BQX, shown)
    nearest = []
    for n, m, _ in levels:
        said_BXHW = other_levels[m].transpose(1, 2).unflatten(2, shown[m].shape[-2:])
        nearest.append(look_up(said_BXHW, maps[n].shape[-2:], zoom, "nearest").flatten(2).transpose(1, 2))
    return torch.cat([own_levels[n] for n, _, _ in levels], 1), torch.cat(nearest, 1)


def _by_map(cells_BQX: Tensor, maps: Sequence[Tensor]) -> Sequence[Tensor]:
    return cells_BQX.split([map_BCHW.shape[-2] * map_BCHW.shape[-1] for map_BCHW in maps], 1)


def look_up(map_BCHW: Tensor, shape: Sequence[int], zoom: float, mode: str) -> Tensor:
    """A map of the teacher's canvas at the centres of the student's cells, (B, C, *shape); 0 beyond its edge.

    Both begin top left and have the same stride, but need not reach equally far.
    """
    height, width = map_BCHW.shape[-2:]
    y_H, x_W = (
        (torch.arange(n, device=map_BCHW.device) + 0.5) * 2 * zoom / size - 1
        for n, size in zip(shape, (height, width), strict=True)
    )
    grid_BHW2 = torch.stack(torch.meshgrid(x_W, y_H, indexing="xy"), -1).expand(len(map_BCHW), -1, -1, -1)
    return F.grid_sample(map_BCHW.float(), grid_BHW2, mode=mode, align_corners=False)

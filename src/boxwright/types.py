"""The three contracts of the library: Batch in, Detector in the middle, Detections out.

Legend of shape suffixes, used in every name that holds a tensor; other letters are explained where they occur:

    B  images of a batch, or their sequences     S  side of the square canvas, in pixels; tokens of an object
    C  channels                                  H, W  height and width of a map or image; H  attention heads
    N  objects of an image, padded               Q  queries or cells
    K  classes                                   L  tokens of a sequence; layers of a decoder
    D  detections kept per image                 M, T  encoded cells of an image
    E  width of an embedding                     V  token ids of a vocabulary; feature maps
    R  rows of a class head; candidates          4  a box, xyxy; 2  a size, (height, width), or a point, (x, y)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from boxwright.boxes import to_pixels
from boxwright.config import require
from boxwright.detections import Detections as Detections


@dataclass
class Batch:
    """Images and their objects, padded to common sizes.

    Attributes:
        images_BCHW: RGB, uint8 (0 to 255) or float (0 to 1), each fitted into the top left corner of a square canvas.
        sizes_B2: height and width of the valid area (the part of the canvas that is image), in canvas pixels, int64.
        originals_B2: height and width of the image on disk, in pixels, int64.
        boxes_BN4: xyxy in [0, 1] of the canvas; padding rows are zero.
        labels_BN: indices of classes, int64; padding rows are zero.
        valid_BN: False on padding rows.
        index_B: index of each image in its data set, int64.
    """

    images_BCHW: Tensor
    sizes_B2: Tensor
    originals_B2: Tensor
    boxes_BN4: Tensor
    labels_BN: Tensor
    valid_BN: Tensor
    index_B: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device (copied without blocking where memory is pinned)."""
        return Batch(**{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})

    def __len__(self) -> int:
        return len(self.images_BCHW)


@dataclass
class Predictions:
    """Predictions for a batch, in canvas coordinates: D rows per image, best first.

    Attributes:
        boxes_BD4: xyxy in [0, 1] of the canvas.
        scores_BD: in [0, 1]; 0 in unused rows.
        labels_BD: indices of classes, int64.
    """

    boxes_BD4: Tensor
    scores_BD: Tensor
    labels_BD: Tensor

    def best_first(self) -> Predictions:
        """The same rows, highest score first."""
        scores_BD, order_BD = self.scores_BD.sort(dim=1, descending=True, stable=True)
        boxes_BD4 = self.boxes_BD4.gather(1, order_BD[..., None].expand(-1, -1, 4))
        return Predictions(boxes_BD4, scores_BD, self.labels_BD.gather(1, order_BD))

    def to_detections(self, batch: Batch, names: Sequence[str], threshold: float = 0.0) -> list[Detections]:
        """Detections of each image, in pixels of the original, clipped to it, with score above `threshold`."""
        canvas_2 = torch.tensor(batch.images_BCHW.shape[-2:], device=self.boxes_BD4.device)
        valid_B12, original_B12 = batch.sizes_B2[:, None], batch.originals_B2[:, None]
        boxes_BD4 = to_pixels(self.boxes_BD4, canvas_2, valid_B12, original_B12).cpu().numpy()
        scores_BD, labels_BD = self.scores_BD.float().cpu().numpy(), self.labels_BD.cpu().numpy()
        keep_BD = scores_BD > threshold
        return [
            Detections(boxes[keep], scores[keep], labels[keep], tuple(names))
            for boxes, scores, labels, keep in zip(boxes_BD4, scores_BD, labels_BD, keep_BD, strict=True)
        ]


class FeatureMaps(NamedTuple):
    """Where a detector computes its feature maps.

    Attributes:
        module: its output is the list of maps (B, C, H, W), finest first.
        strides: canvas pixels per cell of each map; empty where the module has no such maps.
    """

    module: nn.Module
    strides: list[int]


class CellPredictions(NamedTuple):
    """Predictions of every cell of the feature maps, map after map, row by row.

    Attributes:
        logits_BQK: class scores before the sigmoid.
        boxes_BQ4: xyxy in [0, 1] of the canvas.
    """

    logits_BQK: Tensor
    boxes_BQ4: Tensor


class AttentionLayers(NamedTuple):
    """The attention modules of a detector with queries, from the first layer to the last.

    Each is an `Attention` or a `DeformableAttention` of `boxwright.models.layers`.

    Attributes:
        encoder: self-attention of the cells of the feature maps.
        decoder: cross-attention of the queries to the cells.
    """

    encoder: list[nn.Module]
    decoder: list[nn.Module]


class QueryLayers(NamedTuple):
    """What each query predicts after each of the L decoder layers.

    Attributes:
        scores_LBQK: score of each class, in [0, 1].
        boxes_LBQ4: xyxy in [0, 1] of the valid area.
        map_shapes: rows and columns of each feature map that the queries attend to, finest first.
    """

    scores_LBQK: Tensor
    boxes_LBQ4: Tensor
    map_shapes: list[tuple[int, int]]


class Detector(nn.Module):
    """A network that predicts boxes. Training, evaluation, prediction, export and explanation rely on nothing else.

    A new detector is one file in `boxwright.models` with such a class, and one line in `boxwright.models.registry`.

    The valid area is passed beside the images because every published network treats padding in its own way:
    normalisation, the padding value and attention masks belong to the detector.

    Attributes:
        config: a frozen dataclass of numbers, strings and tuples, from which the network can be built again.
        names: the classes; a class is represented by its index in them.
        image_size: side S of the square canvas it was made for, in pixels. Other sizes are allowed.
        backbone: the part that may start from pretrained weights.
        card: the model card, how it was trained and on what, as JSON values.
        square_canvas: whether an exported graph pads images to the square canvas, instead of passing them on as they
            are after resizing.
        fp32_modules: names of modules, at any depth, that stay in fp32 when the network is quantised: they have few
            outputs, and no later layer corrects their errors.
        explained_as: which page `explain` writes: attention of `queries`, tokens of a `sequence`, or none.
    """

    config: Any
    names: tuple[str, ...]
    image_size: int
    backbone: Any  # a module of `boxwright.models.backbones`
    card: dict[str, Any]
    square_canvas: ClassVar[bool] = True
    fp32_modules: ClassVar[tuple[str, ...]] = ()
    explained_as: Literal["queries", "sequence"] | None = None

    def __init__(self) -> None:
        super().__init__()
        self.card = {}

    def forward(self, images_BCHW: Tensor, sizes_B2: Tensor, targets: Batch | None = None) -> Any:
        """Whatever `loss` and `decode` of the same detector need.

        Args:
            images_BCHW: as in `Batch`.
            sizes_B2: as in `Batch`.
            targets: the batch with its objects, if `loss` will be computed; `decode` works with and without.
        """
        raise NotImplementedError

    def loss(self, outputs: Any, batch: Batch) -> Mapping[str, Tensor]:
        """Named scalar losses, already weighted: their sum is what training minimises.

        Args:
            outputs: what `forward` returned with this batch as its targets.
            batch: images and their objects.
        """
        raise NotImplementedError

    def decode(self, outputs: Any) -> Predictions:
        """Boxes, scores and classes, best first."""
        raise NotImplementedError

    def complete(
        self, outputs: Any, batch: Batch, classes: Sequence[int] | None = None, objects: int | None = None
    ) -> Predictions:
        """Predict what is missing in a batch, best first. Only sequence detectors can be given objects.

        Args:
            outputs: what `forward` returned for this batch.
            batch: its objects are given, and not predicted again.
            classes: indices of the classes to predict, by default all.
            objects: the most to predict, given ones included.

        Raises:
            UserError: for given objects, or a number of them, where the detector predicts all objects at once.
        """
        kind = type(self).__name__.lower()
        asked = objects is not None or bool(batch.valid_BN.any())
        only = f"only a sequence detector can be given objects, or a number of them, and this is a {kind}"
        fix = "train one (--model pix2seq or patchseq), or import official weights (boxwright import-weights)"
        require(not asked, f"{only}; {fix}.")
        found = self.decode(outputs)
        if classes is None:
            return found
        wanted_BD = torch.isin(found.labels_BD, torch.tensor(list(classes), device=found.labels_BD.device))
        return Predictions(found.boxes_BD4, found.scores_BD * wanted_BD, found.labels_BD).best_first()

    def likelihood(self, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor] | None:
        """Log-likelihood of the annotated objects of each image, and the number of tokens it sums over, each (B,).

        None where the detector does not predict tokens.
        """
        return None

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Parameters that may be pretrained; they learn at a fraction of the others' rate."""
        raise NotImplementedError

    def with_classes(self, names: tuple[str, ...], image_size: int | None = None, pretrained: bool = True) -> Detector:
        """The same network for other classes; classes of the same name keep their weights.

        Args:
            names: the classes.
            image_size: instead of its own.
            pretrained: freeze norms and stem of the backbone, as if it had started from ImageNet weights.

        Raises:
            UserError: for more classes than the network has room for.
        """
        raise NotImplementedError

    def feature_maps(self) -> FeatureMaps:
        """Where its feature maps are computed; in distillation, the student learns to resemble the teacher's."""
        return FeatureMaps(self.backbone, [])

    def cell_predictions(self, outputs: Any) -> CellPredictions | None:
        """Predictions of each cell of `feature_maps`, for distillation; None if cells predict nothing."""
        return None

    def attention_layers(self) -> AttentionLayers:
        """The modules whose attention `explain` draws, where `explained_as` is "queries"."""
        raise NotImplementedError

    def query_layers(self, outputs: Any) -> QueryLayers:
        """What the queries predict after each decoder layer, where `explained_as` is "queries"."""
        raise NotImplementedError


def pixels(images_BCHW: Tensor) -> Tensor:
    """Images as float in [0, 1], whichever of the two forms of `Batch.images_BCHW` they have."""
    return images_BCHW / 255 if images_BCHW.dtype == torch.uint8 else images_BCHW


def image_mask(images_BCHW: Tensor, sizes_B2: Tensor) -> Tensor:
    """(B, H, W) bool, True on the valid area of the canvas."""
    height, width = images_BCHW.shape[-2:]
    rows_B1 = torch.arange(height, device=sizes_B2.device) < sizes_B2[:, :1]
    columns_B1 = torch.arange(width, device=sizes_B2.device) < sizes_B2[:, 1:]
    return rows_B1[:, :, None] & columns_B1[:, None, :]


@contextmanager
def evaluating(detector: Detector) -> Iterator[None]:
    """Put the detector into evaluation mode, and afterwards back into the mode it was in."""
    was_training = detector.training
    if was_training:
        detector.eval()
    try:
        yield
    finally:
        if was_training:
            detector.train()

"""The three contracts of the library: Batch in, Detector in the middle, Detections out.

Legend of shape suffixes, used in every name that holds a tensor:

    B  images in a batch                     S  side of the square canvas, in pixels
    C  channels                              H, W  height and width of a tensor
    N  objects of an image, padded           Q  queries, cells or sentence slots
    K  classes                               L  length of a sentence in tokens
    D  detections kept per image             T  tokens of an image (encoder memory)
    E  width of an embedding                 4  a box, xyxy; 2  a size, (height, width)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from boxwright.config import require
from boxwright.detections import Detections as Detections


@dataclass
class Batch:
    """Images and their objects, padded to common sizes.

    Attributes:
        images_BCHW: RGB, uint8 (0 to 255) or float (0 to 1), each fitted into the top left corner of a square canvas.
        sizes_B2: height and width of the part of the canvas that is image, in canvas pixels, int64.
        originals_B2: height and width of the image on disk, in pixels, int64.
        boxes_BN4: xyxy in [0, 1] of the canvas; padding rows are zero.
        labels_BN: class positions, int64; padding rows are zero.
        valid_BN: False on padding rows.
        index_B: position of each image in its data set, int64.
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
    """What a detector says of a batch, in canvas coordinates: a fixed number D of rows an image, best first.

    Attributes:
        boxes_BD4: xyxy in [0, 1] of the canvas.
        scores_BD: in [0, 1]; rows that mean nothing have score 0.
        labels_BD: class positions, int64.
    """

    boxes_BD4: Tensor
    scores_BD: Tensor
    labels_BD: Tensor

    def best_first(self) -> Predictions:
        """The same rows, sorted."""
        scores_BD, order_BD = self.scores_BD.sort(dim=1, descending=True, stable=True)
        boxes_BD4 = self.boxes_BD4.gather(1, order_BD[..., None].expand(-1, -1, 4))
        return Predictions(boxes_BD4, scores_BD, self.labels_BD.gather(1, order_BD))

    def to_detections(self, batch: Batch, names: Sequence[str], threshold: float = 0.0) -> list[Detections]:
        """Detections of each image, in pixels of the original, clipped to it, with score above `threshold`."""
        side = torch.tensor(batch.images_BCHW.shape[-2:], device=self.boxes_BD4.device)
        scale_B2 = side / batch.sizes_B2.clamp(min=1) * batch.originals_B2  # at least 1: images that are all padding
        scale_B14 = scale_B2.flip(-1).repeat(1, 2)[:, None]
        limit_B14 = batch.originals_B2.flip(-1).repeat(1, 2)[:, None]
        boxes_BD4 = torch.minimum((self.boxes_BD4 * scale_B14).clamp(min=0), limit_B14).float().cpu().numpy()
        scores_BD, labels_BD = self.scores_BD.float().cpu().numpy(), self.labels_BD.cpu().numpy()
        keep_BD = scores_BD > threshold
        return [
            Detections(boxes[keep], scores[keep], labels[keep], tuple(names))
            for boxes, scores, labels, keep in zip(boxes_BD4, scores_BD, labels_BD, keep_BD, strict=True)
        ]


class Detector(nn.Module):
    """A network that says boxes. The loop, the evaluator and the predictor know nothing but this.

    The part that is image travels beside the images because every original treats padding in its own way:
    normalisation, the padding value and attention masks belong to the detector.

    Attributes:
        names: the classes, in the order of their positions.
        image_size: side S of the square canvas it was made for, in pixels. Other sizes are allowed.
    """

    names: tuple[str, ...]
    image_size: int

    def forward(self, images_BCHW: Tensor, sizes_B2: Tensor) -> Any:
        """Raw outputs, whatever `loss` and `decode` of the same detector need."""
        raise NotImplementedError

    def loss(self, raw: Any, batch: Batch) -> Mapping[str, Tensor]:
        """Named scalar losses, already weighted: their sum is what training minimises."""
        raise NotImplementedError

    def decode(self, raw: Any) -> Predictions:
        """Boxes, scores and classes, best first."""
        raise NotImplementedError

    def complete(
        self, raw: Any, batch: Batch, classes: Sequence[int] | None = None, objects: int | None = None
    ) -> Predictions:
        """What is missing in the batch, best first; only detectors that say one object after the other can be told
        what is there.

        Args:
            raw: of the batch.
            batch: its objects are given, and not said again.
            classes: positions of those to look for, by default all.
            objects: how many to say at most, given ones included.

        Raises:
            UserError: for objects given, or a number of them, to a detector that cannot be told.
        """
        kind = type(self).__name__.lower()
        told = objects is not None or bool(batch.valid_BN.any())
        only = f"only a detector that writes sentences can be given objects, or a number of them, and this is a {kind}"
        mend = "train one (--model pix2seq or patchseq), or import official weights (boxwright import-weights)"
        require(not told, f"{only}; {mend}.")
        said = self.decode(raw)
        if classes is None:
            return said
        wanted_BD = torch.isin(said.labels_BD, torch.tensor(list(classes), device=said.labels_BD.device))
        return Predictions(said.boxes_BD4, said.scores_BD * wanted_BD, said.labels_BD).best_first()

    def likelihood(self, raw: Any, batch: Batch) -> tuple[Tensor, Tensor] | None:
        """Log-likelihood of what is true of each image, and of how many words it is the sum, each (B,).

        None where nothing is said in words.
        """
        return None

    def backbone_parameters(self) -> list[nn.Parameter]:
        """The pretrained part, which learns at a fraction of the rate of the rest."""
        raise NotImplementedError


def pixels(images_BCHW: Tensor) -> Tensor:
    """Images as float in [0, 1], whichever of the two forms of `Batch.images_BCHW` they have."""
    return images_BCHW / 255 if images_BCHW.dtype == torch.uint8 else images_BCHW


def image_mask(images_BCHW: Tensor, sizes_B2: Tensor) -> Tensor:
    """(B, H, W) bool, True on the part of the canvas that is image."""
    height, width = images_BCHW.shape[-2:]
    rows_B1 = torch.arange(height, device=sizes_B2.device) < sizes_B2[:, :1]
    columns_B1 = torch.arange(width, device=sizes_B2.device) < sizes_B2[:, 1:]
    return rows_B1[:, :, None] & columns_B1[:, None, :]

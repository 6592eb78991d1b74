"""Images of a batch that are mixed with each other: which ones, the layout of a mosaic, and the blend of two images.

    mosaic                    mixup                     copy-blend
    +-----+---+               +--------+                +--------+
    |  0  | 1 |               |0   1   |                |0       |
    +-----+---+               |  1   0 |                |    +-+ |   an object of image 1
    | 2 |  3  |               |0   1   |                |    |1| |
    +---+-----+               +--------+                +----+-+-+

All raise the number of objects in an image, so that a detector sees more of them in a step (dense one-to-one in DEIM,
Huang et al. 2024). Mosaic after Bochkovskiy et al. 2020 (YOLOv4); mixup after Zhang et al. 2017, in the form for
detectors of Zhang et al. 2019 (Bag of Freebies), in which the objects of both images are targets.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from boxwright.config import Augment
from boxwright.data.copy_blend import DRAWS, PASTES, copy_blend
from boxwright.types import Batch, image_mask

SHARE = (0.45, 0.55)  # range of an image's share in a mixup, as in DEIM
OWN_SEED = 2**32  # so that the numbers drawn here leave those of scale, crop, flip and colour as they are without it


@dataclass(frozen=True)
class Mixing:
    """What is mixed with what, all on the CPU; rows are those of the augmented batch.

    Attributes:
        plain_R, mosaic_M: rows that stay one image, and that become a mosaic.
        sources_M4: the images of each mosaic, as rows of the batch before augmentation; the first is the row's own.
        flip_M4: which of them are flipped.
        copy_C, donors_CP, draws_CPX: rows that get objects; the rows that these are from; numbers for `copy_blend`.
        mixup_U, partner_U, share_U: rows that are blended, with which rows, and their own shares.
    """

    plain_R: Tensor
    mosaic_M: Tensor
    sources_M4: Tensor
    flip_M4: Tensor
    copy_C: Tensor
    donors_CP: Tensor
    draws_CPX: Tensor
    mixup_U: Tensor
    partner_U: Tensor
    share_U: Tensor

    @staticmethod
    def draw(images: int, settings: Augment, seed: int) -> "Mixing":
        """A function of its arguments alone.

        Args:
            images: in the batch before augmentation. One alone is not mixed.
            settings: its `views` is how often each occurs in the augmented batch.
            seed: of all random numbers.
        """
        views, generator = settings.views or 1, torch.Generator().manual_seed(seed + OWN_SEED)
        rows = images * views
        chances_31 = torch.tensor([settings.mosaic or 0.0, settings.copy_blend or 0.0, settings.mixup or 0.0])[:, None]
        chosen_3B = (torch.rand(3, rows, generator=generator) < chances_31) & (images > 1)
        mosaic_M, copy_C, mixup_U = (chosen_B.nonzero()[:, 0] for chosen_B in chosen_3B)
        own_B = torch.arange(rows) // views
        sources_B4 = torch.cat([own_B[:, None], _others(images, 3, generator)[own_B]], 1)
        flip_B4 = torch.rand(rows, 4, generator=generator) < (settings.flip or 0.0)
        draws_BPX = torch.rand(rows, PASTES, DRAWS, generator=generator)
        share_B = SHARE[0] + (SHARE[1] - SHARE[0]) * torch.rand(rows, generator=generator)
        others_BP = _others(rows, PASTES, generator)
        return Mixing(
            plain_R=(~chosen_3B[0]).nonzero()[:, 0],
            mosaic_M=mosaic_M,
            sources_M4=sources_B4[mosaic_M],
            flip_M4=flip_B4[mosaic_M],
            copy_C=copy_C,
            donors_CP=others_BP[copy_C],
            draws_CPX=draws_BPX[copy_C],
            mixup_U=mixup_U,
            partner_U=others_BP[mixup_U, 0],
            share_U=share_B[mixup_U],
        )

    def blend(self, batch: Batch, min_visible: float) -> Batch:
        """Copy-blend, then mixup, of the augmented images, which are changed."""
        if len(self.copy_C):
            batch = copy_blend(batch, self.copy_C, self.donors_CP, self.draws_CPX, min_visible)
        if len(self.mixup_U):
            batch = mixup(batch, self.mixup_U, self.partner_U, self.share_U)
        boxes_BN4, labels_BN, valid_BN = valid_first(batch.boxes_BN4, batch.labels_BN, batch.valid_BN)
        most = max(1, int(valid_BN.sum(1).max()))
        return replace(batch, boxes_BN4=boxes_BN4[:, :most], labels_BN=labels_BN[:, :most], valid_BN=valid_BN[:, :most])


def is_mixing(settings: Augment) -> bool:
    """Whether any image may be mixed with others."""
    return bool(settings.mosaic or settings.mixup or settings.copy_blend)


def without_mixing(settings: Augment) -> Augment:
    """The same settings for images that stay as they are."""
    return replace(settings, mosaic=0.0, mixup=0.0, copy_blend=0.0)


def _others(count: int, number: int, generator: torch.Generator) -> Tensor:
    """(count, number): for each of `count` rows others, different ones as far as there are: those next in a circle."""
    circle = torch.randperm(count, generator=generator)
    steps = torch.arange(number) % max(count - 1, 1) + 1
    return circle[(circle.argsort()[:, None] + steps) % count]


def place_tiles(sizes_M42: Tensor) -> tuple[Tensor, Tensor]:
    """The grids of mosaics: the top left corner of each image, (M, 4, 2), and the size of the whole, (M, 2), in pixels.

    Args:
        sizes_M42: of the four images, row by row. They meet at one point, as close as their sizes allow.
    """
    height_M4, width_M4 = sizes_M42.unbind(-1)
    top_M, bottom_M = height_M4[:, :2].amax(1), height_M4[:, 2:].amax(1)
    left_M, right_M = width_M4[:, ::2].amax(1), width_M4[:, 1::2].amax(1)
    zero_M = torch.zeros_like(top_M)
    y_M4 = torch.stack([top_M - height_M4[:, 0], top_M - height_M4[:, 1], top_M, top_M], 1)
    x_M4 = torch.stack([left_M - width_M4[:, 0], left_M + zero_M, left_M - width_M4[:, 2], left_M + zero_M], 1)
    return torch.stack([y_M4, x_M4], -1), torch.stack([top_M + bottom_M, left_M + right_M], -1)


def join(parts: list[Batch], order_B: Tensor) -> Batch:
    """One batch of several, with rows of objects for the most of them.

    Args:
        parts: on one device, with images of one size.
        order_B: for each row of the result, its row in the parts one after the other.
    """
    most = max(part.valid_BN.shape[1] for part in parts)
    order_B = order_B.to(parts[0].valid_BN.device)
    joined = {}
    for name in (field.name for field in fields(Batch)):
        tensors = [getattr(part, name) for part in parts]
        if name in ("boxes_BN4", "labels_BN", "valid_BN"):
            tensors = [_lengthened(tensor, most) for tensor in tensors]
        joined[name] = torch.cat(tensors)[order_B] if len(parts) > 1 else tensors[0]
    return Batch(**joined)


def valid_first(boxes_BN4: Tensor, labels_BN: Tensor, valid_BN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Valid rows in their order, then zeros."""
    order_BN = (~valid_BN).long().argsort(dim=-1, stable=True)
    valid_BN = valid_BN.gather(1, order_BN)
    boxes_BN4 = boxes_BN4.gather(1, order_BN[..., None].expand(-1, -1, 4)) * valid_BN[..., None]
    return boxes_BN4, labels_BN.gather(1, order_BN) * valid_BN, valid_BN


def mixup(batch: Batch, rows_U: Tensor, partner_U: Tensor, share_U: Tensor) -> Batch:
    """Blend images with others of the batch, as these were before; where only one of the two is, it stays as bright.

    Args:
        batch: images as float, zero in the padding; those of `rows_U` are changed.
        rows_U: rows to change.
        partner_U: what each is blended with.
        share_U: weight of its own pixels; the partner's is the rest.
    """
    device = batch.images_BCHW.device
    rows_U, partner_U, share_U = rows_U.to(device), partner_U.to(device), share_U.to(device)
    masks_BHW = image_mask(batch.images_BCHW, batch.sizes_B2)
    own_UCHW, other_UCHW = batch.images_BCHW[rows_U], batch.images_BCHW[partner_U]
    both_U1HW = (masks_BHW[rows_U] & masks_BHW[partner_U])[:, None]
    blend_UCHW = torch.lerp(other_UCHW, own_UCHW, share_U[:, None, None, None])
    images_BCHW = batch.images_BCHW.index_copy_(0, rows_U, blend_UCHW.where(both_U1HW, own_UCHW + other_UCHW))
    sizes_B2 = batch.sizes_B2.clone()
    sizes_B2[rows_U] = torch.maximum(batch.sizes_B2[rows_U], batch.sizes_B2[partner_U])
    source_B = torch.arange(len(batch), device=device).index_copy(0, rows_U, partner_U)
    mixed_B1 = torch.zeros_like(batch.valid_BN[:, :1]).index_fill(0, rows_U, True)
    return replace(
        batch,
        images_BCHW=images_BCHW,
        sizes_B2=sizes_B2,
        boxes_BN4=torch.cat([batch.boxes_BN4, batch.boxes_BN4[source_B]], 1),
        labels_BN=torch.cat([batch.labels_BN, batch.labels_BN[source_B]], 1),
        valid_BN=torch.cat([batch.valid_BN, batch.valid_BN[source_B] & mixed_B1], 1),
    )


def _lengthened(tensor_BNX: Tensor, rows: int) -> Tensor:
    """With zeros behind, to this number of rows for each image."""
    missing = rows - tensor_BNX.shape[1]
    zeros_BNX = tensor_BNX.new_zeros(len(tensor_BNX), missing, *tensor_BNX.shape[2:])
    return torch.cat([tensor_BNX, zeros_BNX], 1)

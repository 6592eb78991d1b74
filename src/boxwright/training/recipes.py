"""How each detector is trained by default."""

from dataclasses import dataclass, replace
from typing import Any

from boxwright.config import Augment, Optim
from boxwright.models.backbones.backbone import is_plain_vit
from boxwright.models.registry import DETECTORS, check_choice

USUAL_IMAGES = 300  # training images, for which `Recipe.epochs` are
FEWEST_EPOCHS = 12  # of very many images
MOST_EPOCHS = 100  # of very few
POWER = 0.5  # of the fall from many epochs to few


@dataclass(frozen=True)
class Recipe:
    """Training settings of a detector, where the user leaves them open.

    Attributes:
        epochs: passes over about `USUAL_IMAGES` training images; see `epochs_for`.
        published: trained as published: `epochs` are those of any number of images.
    """

    epochs: int
    batch_size: int
    augment: Augment
    optim: Optim
    published: bool = False

    def epochs_for(self, images: int) -> int:
        """Passes over this many training images, at least 1.

        Few images need more epochs, because an epoch has few optimizer steps; many need fewer, but each image must be
        seen some times. So, with the four numbers above::

            epochs = FEWEST_EPOCHS + (self.epochs - FEWEST_EPOCHS) * (USUAL_IMAGES / images) ** POWER

        and at most `MOST_EPOCHS`. Of a recipe of 40 epochs: 81 for 50 images, 40 for 300, 24 for 1,700, 13 for the
        118,000 of COCO. With 16 images per step, these are 324, 760, 2,568 and 95,875 steps: fewer images always mean
        fewer steps.
        """
        if self.published:
            return self.epochs
        extra = (self.epochs - FEWEST_EPOCHS) * (USUAL_IMAGES / images) ** POWER
        return min(round(FEWEST_EPOCHS + extra), MOST_EPOCHS)


AUGMENT = Augment(scale=(0.6, 1.4), flip=0.5, colour=0.3, min_visible=0.25, views=1, geometry="free")
MIXED = Augment(mosaic=0.0, mixup=0.0, copy_blend=0.0, mixed_until=0.8)  # what else a run has that mixes images
RECIPES = {
    "dense": Recipe(
        epochs=40,
        batch_size=16,
        augment=AUGMENT,
        optim=Optim(
            lr=1e-3, backbone_factor=0.2, frozen=0.0, weight_decay=0.05, rule="torch", beta2=0.999, schedule="cosine",
            warmup=0.05, hold=0.3, clip=10.0, accumulate=1, ema=0.998, patience=0,
        ),
    ),
    "pix2seq": Recipe(
        epochs=20,
        batch_size=8,
        augment=AUGMENT,
        optim=Optim(
            lr=1e-3, backbone_factor=0.2, frozen=0.0, weight_decay=0.05, rule="torch", beta2=0.999, schedule="cosine",
            warmup=0.05, hold=0.3, clip=10.0, accumulate=1, ema=0.998, patience=0,
        ),
    ),
    "detr": Recipe(
        epochs=20,
        batch_size=4,
        augment=AUGMENT,
        optim=Optim(
            lr=6e-4, backbone_factor=0.2, frozen=0.0, weight_decay=0.05, rule="torch", beta2=0.999, schedule="cosine",
            warmup=0.05, hold=0.3, clip=1.0, accumulate=1, ema=0.998, patience=0,
        ),
    ),
    "deformable": Recipe(
        epochs=20,
        batch_size=8,
        augment=AUGMENT,
        optim=Optim(
            lr=8e-4, backbone_factor=0.2, frozen=0.0, weight_decay=0.05, rule="torch", beta2=0.999, schedule="cosine",
            warmup=0.05, hold=0.3, clip=1.0, accumulate=1, ema=0.998, patience=0,
        ),
    ),
}  # fmt: skip

RECIPES["patchseq"] = RECIPES["pix2seq"]  # which learns as it does
PUBLISHED_RECIPES = {  # of detectors in their published form, which learn from many images
    "pix2seq": Recipe(
        epochs=60,
        batch_size=16,
        augment=replace(AUGMENT, scale=(0.3, 2.0)),
        optim=Optim(
            lr=3e-4, backbone_factor=0.1, frozen=0.0, weight_decay=0.05, rule="torch", beta2=0.999, schedule="cosine",
            warmup=0.05, hold=0.3, clip=1.0, accumulate=1, ema=0.999, patience=0,
        ),
        published=True,
    ),
    "patchseq": Recipe(
        epochs=60,
        batch_size=8,
        augment=AUGMENT,
        optim=Optim(
            lr=1e-3, backbone_factor=0.2, frozen=0.0, weight_decay=0.05, rule="torch", beta2=0.999, schedule="cosine",
            warmup=0.05, hold=0.3, clip=1.0, accumulate=1, ema=0.998, patience=0,
        ),
        published=True,
    ),
    "detr": Recipe(
        epochs=150,
        batch_size=16,
        augment=AUGMENT,
        optim=Optim(
            lr=4e-4, backbone_factor=0.1, frozen=0.0, weight_decay=1e-4, rule="torch", beta2=0.999, schedule="cosine",
            warmup=0.02, hold=0.3, clip=0.1, accumulate=1, ema=0.999, patience=0,
        ),
        published=True,
    ),
}  # fmt: skip
RECIPES["replication"] = PUBLISHED_RECIPES["pix2seq"]  # only fine-tuned
PLAIN_RATE = 5e-5  # highest learning rate of a plain ViT; ViTDet's goes from 1e-4 at its last block down by 0.7 each


def recipe(model: str, size: str = "nano", backbone: str | None = None, config: Any = None) -> Recipe:
    """The recipe of a detector: the same for each size, but with a lower learning rate for plain ViTs.

    A detector without a recipe of its own is trained as `dense` is.

    Args:
        model, size: names of the registry.
        backbone: instead of that of the size.
        config: of the detector that a run begins with, instead of that of the size.
    """
    check_choice("model", model, DETECTORS)
    found, sizes = RECIPES.get(model, RECIPES["dense"]), DETECTORS[model].sizes
    if config is None and sizes:
        check_choice("size", size, sizes)
        config = sizes[size]
    if model in PUBLISHED_RECIPES and config.published:
        found = PUBLISHED_RECIPES[model]
    backbone = backbone or (config and config.backbone)
    if backbone is None or not is_plain_vit(backbone):
        return found
    rates: Any = found.optim
    return replace(found, optim=replace(rates, backbone_factor=min(rates.backbone_factor, PLAIN_RATE / rates.lr)))

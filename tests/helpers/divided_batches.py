"""A batch to divide among devices, or among the parts of a step, and losses without random numbers."""

import torch

from boxwright.types import Batch, Detector

MODELS = ["dense", "deformable", "detr", "pix2seq", "patchseq"]


def batch_of_four() -> Batch:
    """Noise with 0 to 3 objects per image, so that the halves differ in number."""
    generator = torch.Generator().manual_seed(0)
    counts_B1 = torch.tensor([[3], [0], [1], [2]])
    corner_BN2 = torch.rand(4, 3, 2, generator=generator) * 0.5
    side_BN2 = torch.rand(4, 3, 2, generator=generator) * 0.3 + 0.1
    return Batch(
        images_BCHW=torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=generator),
        sizes_B2=torch.tensor([[64, 64], [48, 64], [64, 48], [64, 64]]),
        originals_B2=torch.full((4, 2), 64),
        boxes_BN4=torch.cat([corner_BN2, corner_BN2 + side_BN2], -1),
        labels_BN=torch.randint(0, 2, (4, 3), generator=generator),
        valid_BN=torch.arange(3) < counts_B1,
        index_B=torch.arange(4),
    )


# Instead of random numbers, which follow from the position of an image in the batch of its process:
CONSTANTS = {
    "rand": lambda shape, device=None: torch.full(shape, 0.3, device=device),
    "rand_like": lambda x, dtype=None: torch.full_like(x, 0.3, dtype=dtype),
    "randn_like": lambda x: torch.full_like(x, 0.1),
    "randint_like": lambda x, *bounds: torch.full_like(x, bounds[0] if len(bounds) > 1 else 0),
    "multinomial": lambda chances, count: chances.topk(count).indices,
}


def rows(batch: Batch, part: slice) -> Batch:
    return Batch(**{name: value[part] for name, value in vars(batch).items()})


def freeze_batch_norm(detector: Detector) -> None:
    """As in a backbone that was pretrained: its statistics would be those of a part."""
    for module in detector.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()

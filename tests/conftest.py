"""Small things that many tests share."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from boxwright.types import Batch, Detector, Predictions, image_mask, pixels


@pytest.fixture
def batch() -> Batch:
    """Two 96 px images of noise, one with three objects, one (smaller than its canvas) with one."""
    generator = torch.Generator().manual_seed(0)
    boxes_BN4 = torch.zeros(2, 3, 4)
    boxes_BN4[0] = torch.tensor([[0.1, 0.1, 0.4, 0.5], [0.5, 0.5, 0.95, 0.9], [0.6, 0.05, 0.66, 0.1]])
    boxes_BN4[1, 0] = torch.tensor([0.2, 0.1, 0.7, 0.6])
    return Batch(
        images_BCHW=torch.randint(0, 256, (2, 3, 96, 96), generator=generator, dtype=torch.uint8),
        sizes_B2=torch.tensor([[96, 96], [64, 96]]),
        originals_B2=torch.tensor([[192, 192], [128, 192]]),
        boxes_BN4=boxes_BN4,
        labels_BN=torch.tensor([[0, 1, 1], [1, 0, 0]]),
        valid_BN=torch.tensor([[True, True, True], [True, False, False]]),
        index_B=torch.arange(2),
    )


class WhiteBoxes(Detector):
    """Finds the one white rectangle on a dark image, by looking: the whole path of coordinates is under test."""

    def __init__(self, names: tuple[str, ...] = ("box", "other"), image_size: int = 64, score: float = 0.9):
        super().__init__()
        self.names, self.image_size, self.score = names, image_size, score

    def forward(self, images_BCHW: Tensor, sizes_B2: Tensor) -> Tensor:
        return (pixels(images_BCHW).mean(1) > 0.5) & image_mask(images_BCHW, sizes_B2)

    def decode(self, raw: Tensor) -> Predictions:
        side, n = raw.shape[-1], len(raw)
        rows_BS, columns_BS = raw.any(2).int(), raw.any(1).int()
        x1, y1 = columns_BS.argmax(1), rows_BS.argmax(1)
        x2, y2 = side - columns_BS.flip(1).argmax(1), side - rows_BS.flip(1).argmax(1)
        boxes_B14 = (torch.stack([x1, y1, x2, y2], 1) / side)[:, None]
        scores_B1 = raw.flatten(1).any(1).float()[:, None] * self.score
        return Predictions(boxes_B14, scores_B1, torch.zeros(n, 1, dtype=torch.int64))


@pytest.fixture
def white_boxes() -> WhiteBoxes:
    return WhiteBoxes()


@pytest.fixture
def paint() -> Callable[..., Path]:
    """A function that writes a dark image with a white box: ``paint(path, (width, height), (x1, y1, x2, y2))``."""

    def write(path: Path, size: tuple[int, int], box: tuple[int, int, int, int] | None) -> Path:
        image = Image.new("RGB", size, (20, 30, 40))
        if box is not None:
            image.paste("white", box)
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        return path

    return write

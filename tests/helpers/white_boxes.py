"""A detector whose predictions are known beforehand."""

import torch
from torch import Tensor

from boxwright.types import Detector, Predictions, image_mask, pixels


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

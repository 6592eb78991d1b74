"""Small things that many tests share."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from boxwright.types import Batch
from helpers.white_boxes import WhiteBoxes

torch.set_num_threads(1)  # tests compute little: a second thread would mostly wait, and keep others from their core


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


@pytest.fixture
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty `curves.png`: to draw it takes longer than the short runs of tests."""
    for name in ("curves", "comparison"):
        monkeypatch.setattr(f"boxwright.visualization.charts.{name}", lambda *args: args[-1].touch())

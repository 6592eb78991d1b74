import torch
from lightning_fabric import Fabric
from torch import nn

from boxwright.training.loop import TrainStep


class Looks(nn.Module):
    """Keeps what it is asked for."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images_BCHW, sizes_B2):
        return self.weight * images_BCHW.float().mean()

    def loss(self, raw, batch):
        self.asked = batch
        return {"all": raw}


def test_boxes_keep_their_digits_in_mixed_precision(batch):
    detector = Looks()
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    step = fabric.setup(TrainStep(detector))  # type: ignore[bad-argument-type]
    step(lambda: batch)
    assert detector.asked.boxes_BN4.dtype == torch.float32
    assert torch.equal(detector.asked.boxes_BN4, batch.boxes_BN4)

import torch
from lightning_fabric import Fabric
from torch import nn

from boxwright.training.loop import TrainStep


class KeepsBatch(nn.Module):
    """Keeps the batch that its loss is computed on."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images_BCHW, sizes_B2, targets=None):
        return self.weight * images_BCHW.float().mean()

    def loss(self, outputs, batch):
        self.batch = batch
        return {"all": outputs}


def test_boxes_keep_their_digits_in_mixed_precision(batch):
    detector = KeepsBatch()
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    step = fabric.setup(TrainStep(detector))  # type: ignore[bad-argument-type]
    step(lambda: batch)
    assert detector.batch.boxes_BN4.dtype == torch.float32
    assert torch.equal(detector.batch.boxes_BN4, batch.boxes_BN4)

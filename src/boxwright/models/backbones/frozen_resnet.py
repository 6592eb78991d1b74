"""torchvision's ResNet as the replications have it, with batch norm that never changes."""

import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from boxwright.config import require
from boxwright.models.backbones.base import BaseBackbone

CHANNELS = 2048  # of the last feature map


class FrozenResNet(BaseBackbone):
    """A ResNet up to its last feature map, at stride 32; its weights come from a checkpoint.

    Args:
        name: `resnet50` or `resnet101`.

    Raises:
        UserError: for another name.
    """

    def __init__(self, name: str):
        super().__init__()
        require(name in ("resnet50", "resnet101"), f"this detector has a resnet50 or resnet101, not {name!r}.")
        network = torchvision.models.get_model(name, weights=None, norm_layer=FrozenBatchNorm2d)
        self.channels, self.strides = [CHANNELS], [32]
        del network.avgpool, network.fc
        for part, module in network.named_children():
            self.add_module(part, module)

    def forward(self, pixels_BCHW: Tensor) -> list[Tensor]:
        """(B, channels, ceil(H / 32), ceil(W / 32)), as the only map, of normalised pixels."""
        x_BCHW = pixels_BCHW
        for module in self.children():
            x_BCHW = module(x_BCHW)
        return [x_BCHW]

    def known_parameters(self) -> list[nn.Parameter]:
        """All of them: a checkpoint has them all."""
        return list(self.parameters())

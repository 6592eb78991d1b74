"""What detectors, training and adapters use of any backbone."""

from torch import Tensor, nn


class BaseBackbone(nn.Module):
    """A network from pixels to feature maps; by default one without pretrained weights.

    Attributes:
        channels: of each map.
        strides: pixels per cell of each map.
        patch: images should be a multiple of this, in pixels; 1 for convolutional networks.
        origin: the weights it begins from and their licence; empty for random ones.
    """

    channels: list[int]
    strides: list[int]
    patch: int = 1
    origin: str = ""

    def forward(self, pixels_BCHW: Tensor) -> list[Tensor]:
        """Feature maps (B, C, H / stride, W / stride), finest first."""
        raise NotImplementedError

    def known_parameters(self) -> list[nn.Parameter]:
        """The parameters with pretrained weights."""
        return []

    def freeze(self) -> None:
        """Freeze what a small data set would spoil of pretrained weights."""

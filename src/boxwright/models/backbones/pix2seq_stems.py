"""The backbones of google-research/pix2seq: its ResNet, or one convolution over patches.

Pixels in [0, 1] are not normalised, there are no pretrained weights, and all layers learn, norms included. The ResNet
differs from torchvision's (in both, the 3x3 convolution of a block is the strided one):

- the max-pool of the stem pads as TensorFlow's SAME does, an even side only at its end (symmetric padding moves the
  encoder's output by 0.4);
- running variances average the biased variances of the batches, without the factor n / (n - 1);
- widths can be scaled, and the last stage can be left out, for stride 16.
"""

import math
import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from boxwright.config import UserError
from boxwright.models.backbones.base import BaseBackbone

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}  # in each stage, by depth
PATCHES = "patches"
_RESNET = re.compile(r"pix2seq_resnet(\d+)(?:x(\d*\.?\d+))?")


def is_stem(name: str) -> bool:
    """Whether it is the name of such a backbone."""
    return name == PATCHES or _RESNET.fullmatch(name) is not None


def make_stem(name: str, stride: int, width: int) -> "ResNet | Patches | None":
    """The backbone of this name, or None where it is no name of such a backbone.

    Args:
        name: `pix2seq_resnet50` (or 101, 152, 200), with `x0.5` after it for half the width, or `patches`.
        stride: pixels per cell; of a ResNet 16 (without its last stage) or 32, of patches any.
        width: channels of `patches`.

    Raises:
        UserError: for a depth or stride that the ResNet does not have.
    """
    if name == PATCHES:
        return Patches(stride, width)
    match = _RESNET.fullmatch(name)
    if match is None:
        return None
    depth, scale = int(match[1]), float(match[2] or 1)
    if depth not in BLOCKS or stride not in (16, 32) or scale <= 0:
        depths = ", ".join(map(str, BLOCKS))
        raise UserError(f"{name} at stride {stride}: pix2seq_resnet has the depths {depths} and the strides 16 and 32.")
    return ResNet(BLOCKS[depth][: 4 if stride == 32 else 3], scale)


class Patches(BaseBackbone):
    """One convolution over patches that do not overlap; pixels left over at the right and bottom are dropped."""

    def __init__(self, stride: int, width: int):
        super().__init__()
        self.channels, self.strides = [width], [stride]
        self.projection = nn.Conv2d(3, width, stride, stride)
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)  # type: ignore[arg-type]

    def forward(self, pixels_BCHW: Tensor) -> list[Tensor]:
        """(B, channels, H // stride, W // stride), as the only map."""
        return [self.projection(pixels_BCHW)]


class ResNet(BaseBackbone):
    """A 7x7 convolution, then bottleneck stages.

    Args:
        blocks: number in each stage.
        scale: of all widths.
    """

    def __init__(self, blocks: tuple[int, ...], scale: float):
        super().__init__()
        width = int(64 * scale)
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = BatchNorm(width)
        stages, inputs = [], width
        for stage, count in enumerate(blocks):
            planes = int(64 * 2**stage * scale)
            stages.append(_stage(inputs, planes, count, 1 if stage == 0 else 2))
            inputs = planes * Bottleneck.expansion
        self.stages = nn.ModuleList(stages)
        self.channels, self.strides = [inputs], [2 ** (len(blocks) + 1)]
        self._initialise()

    def forward(self, pixels_BCHW: Tensor) -> list[Tensor]:
        """(B, channels, ceil(H / stride), ceil(W / stride)), as the only map."""
        x_BCHW = pool_same(F.relu(self.bn1(self.conv1(pixels_BCHW))))
        for stage in self.stages:
            x_BCHW = stage(x_BCHW)
        return [x_BCHW]

    def _initialise(self) -> None:
        """Variance scaling by fan-in; the last norm of a block starts at zero, so that it starts as its shortcut."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                std = math.sqrt(1 / module.weight[0].numel()) / 0.87962566103423978  # of a normal cut at two deviations
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            if isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)  # type: ignore[arg-type]


class BatchNorm(nn.BatchNorm2d):
    """Batch norm whose running variance averages the biased variances of the batches, as in TensorFlow.

    Where its weight is frozen, its statistics are too.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Same shape as given."""
        if not (self.training and self.weight.requires_grad):
            statistics = (self.running_mean, self.running_var, self.weight, self.bias)
            return F.batch_norm(input, *statistics, False, 0.0, self.eps)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        mean_C, variance_C = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        output = F.batch_norm(input, mean_C, variance_C, self.weight, self.bias, True, 1.0, self.eps)
        count = input.numel() // input.shape[1]
        with torch.no_grad():
            self.running_mean.lerp_(mean_C, self.momentum)
            self.running_var.lerp_(variance_C * ((count - 1) / count), self.momentum)
        return output


def pool_same(x_BCHW: Tensor) -> Tensor:
    """Max-pool 3x3 at stride 2, padded as TensorFlow's SAME: by (0, 1) where a side is even, by (1, 1) where odd."""
    (top, left) = (side % 2 for side in x_BCHW.shape[-2:])
    return F.max_pool2d(F.pad(x_BCHW, (left, 1, top, 1), value=-torch.inf), 3, 2)


def _stage(inputs: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    outputs = planes * Bottleneck.expansion
    shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), BatchNorm(outputs))
    first = Bottleneck(inputs, planes, stride, shortcut, norm_layer=BatchNorm)
    rest = [Bottleneck(outputs, planes, norm_layer=BatchNorm) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)

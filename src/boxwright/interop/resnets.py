"""ResNets in checkpoints of DETR and Deformable DETR: timm's name for each, and Hugging Face's names of layers."""

import re
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from boxwright.config import UserError

Rules = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]

RESNETS: dict[tuple[tuple[int, ...], bool], str] = {  # by blocks per stage, and whether these have three convolutions
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((2, 2, 2, 2), True): "resnet26",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
TO_TIMM: Rules = [  # for Hugging Face's own ResNet
    (r"^(backbone\.net\.)embedder\.embedder\.convolution\.", r"\1conv1."),
    (r"^(backbone\.net\.)embedder\.embedder\.normalization\.", r"\1bn1."),
    (r"^(backbone\.net\.)encoder\.stages\.(\d+)\.layers\.", lambda m: f"{m[1]}layer{int(m[2]) + 1}."),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
    (r"\.layer\.(\d+)\.convolution\.", lambda m: f".conv{int(m[1]) + 1}."),
    (r"\.layer\.(\d+)\.normalization\.", lambda m: f".bn{int(m[1]) + 1}."),
]
COUNTER = re.compile(r".*\.num_batches_tracked")  # not needed, since the norms are frozen


def resnet_of(state: Mapping[str, Tensor]) -> str:
    """Name in timm of a ResNet with tensors ``backbone.net.layer1.0.conv1.weight`` and so on.

    Raises:
        UserError: if it is not one of `RESNETS`.
    """
    found = {(int(m[1]), int(m[2])) for name in state if (m := re.match(r"backbone\.net\.layer(\d+)\.(\d+)\.", name))}
    blocks = tuple(sum(stage == wanted for stage, _ in found) for wanted in range(1, 5))
    name = RESNETS.get((blocks, "backbone.net.layer1.0.conv3.weight" in state))
    if name is None:
        known = ", ".join(sorted(RESNETS.values()))
        count = " + ".join(map(str, blocks))
        raise UserError(f"the backbone of this checkpoint has {count} blocks in four stages, which is none of {known}.")
    return name

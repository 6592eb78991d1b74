"""A plain vision transformer as a backbone: its last feature map, at the stride of its patches, becomes a pyramid.

        image ── patches ── blocks: all but four use windowed attention ── norm ── map at stride 16
                                                                                       │
                              stride 4 ── two transposed convolutions ─────────────────┤
                              stride 8 ── a transposed convolution ────────────────────┤
                              stride 16 ── unchanged ──────────────────────────────────┤
                              stride 32 ── max-pooled ─────────────────────────────────┘

Windows and pyramid as in "Exploring plain vision transformer backbones for object detection" (Li et al. 2022), with
three differences: windows divide the image evenly, and overlap instead of being padded; class and register tokens are
kept, attend in every window, and are averaged over the windows; and an image that fits into one window gets global
attention in all blocks, exactly as the ViT was pretrained.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d, Mlp
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from boxwright.config import UserError, require

MODULES = {"vision_transformer", "vision_transformer_hybrid", "deit", "eva"}  # timm modules of plain ViTs
WINDOW = 32  # cells along a side; images up to 512 pixels are one window
GLOBAL = 4  # blocks with global attention, the last of each quarter


class PlainViT(nn.Module):
    """A plain ViT of timm with a feature map at each of the given strides.

    Args:
        vit: from timm, made with `dynamic_img_size`; it is pruned and changed in place.
        strides: of the feature maps, in input pixels per cell: the side of a patch, or that doubled or halved, once or
            more. Patches whose side is no power of two (DINOv2's 14) are resized to 16 pixels.
        window: cells along the side of a window, at most.
        convolved: positions come from zero-padded depth-wise convolutions in the MLPs ("SegFormer", Xie et al. 2021)
            instead of position embeddings.

    Attributes:
        patch: pixels along the side of a patch.
        channels: of each map.

    Raises:
        UserError: for a stride that can't be made, or convolutions in a transformer of another architecture.
    """

    def __init__(self, vit: Any, strides: Sequence[int], window: int = WINDOW, convolved: bool = False):
        super().__init__()
        self.vit: Any = vit
        self.strides = list(strides)
        self.patch = _prepare(vit)
        self.width = vit.embed_dim
        self.pyramid = nn.ModuleList(self._pyramid_level(stride) for stride in strides)
        self.channels = [
            max(self.width * stride // self.patch, 1) if stride < self.patch else self.width for stride in strides
        ]
        self.grid_modules: list[WindowedAttention | ConvolvedActivation] = []  # need the number of cells at each call
        if convolved:
            self._convolve()
        self._use_windows(window)

    def forward(self, x_BCHW: Tensor) -> list[Tensor]:
        """Maps (B, C, H / stride, W / stride), rounded up, of normalised pixels."""
        height, width = x_BCHW.shape[-2:]
        padded_BCHW = F.pad(x_BCHW, (0, -width % self.patch, 0, -height % self.patch))
        for module in self.grid_modules:
            module.grid = (padded_BCHW.shape[-2] // self.patch, padded_BCHW.shape[-1] // self.patch)
        last = len(self.vit.blocks) - 1
        (cells_BCHW,) = self.vit.forward_intermediates(padded_BCHW, indices=[last], norm=True, intermediates_only=True)
        return [
            level(cells_BCHW)[..., : math.ceil(height / stride), : math.ceil(width / stride)]
            for level, stride in zip(self.pyramid, self.strides, strict=True)
        ]

    def added_parameters(self) -> list[nn.Parameter]:
        """The parameters that no pretrained ViT has: of the pyramid and of the convolutions."""
        convolutions = [m.conv for m in self.grid_modules if isinstance(m, ConvolvedActivation)]
        return [parameter for module in (self.pyramid, *convolutions) for parameter in module.parameters()]

    def freeze_stem(self) -> None:
        """Freeze the projection of the patches."""
        for parameter in self.vit.patch_embed.parameters():
            parameter.requires_grad_(False)

    def _pyramid_level(self, stride: int) -> nn.Module:
        """From the map at the stride of the patches to one at another stride."""
        steps = math.log2(self.patch / stride)
        if steps != int(steps):
            known = ", ".join(str(self.patch * 2**n // 4) for n in range(4))
            raise UserError(f"a plain transformer of {self.patch}-pixel patches has strides {known}, not {stride}.")
        if steps <= 0:
            return nn.Sequential(*(nn.MaxPool2d(2, ceil_mode=True) for _ in range(-int(steps))))
        layers: list[nn.Module] = []
        for step in range(int(steps)):  # each step halves stride and width
            width = self.width >> step
            layers += [LayerNorm2d(width), nn.GELU()] if step else []
            layers += [nn.ConvTranspose2d(width, width // 2, 2, 2)]
        return nn.Sequential(*layers)

    def _convolve(self) -> None:
        blocks = list(self.vit.blocks)
        if type(self.vit) is not VisionTransformer or not all(isinstance(block.mlp, Mlp) for block in blocks):
            raise UserError("convolutions can take the place of positions in plain ViTs with plain MLPs only.")
        self.vit.pos_embed = None
        for block in blocks:
            block.mlp.act = ConvolvedActivation(block.mlp.act, block.mlp.fc1.out_features, self.vit.num_prefix_tokens)
            self.grid_modules.append(block.mlp.act)

    def _use_windows(self, side: int) -> None:
        blocks = list(self.vit.blocks)
        global_blocks = {len(blocks) * (n + 1) // GLOBAL - 1 for n in range(GLOBAL)}
        for n, block in enumerate(blocks):
            if n not in global_blocks and hasattr(block, "attn"):
                block.attn = WindowedAttention(block.attn, self.vit.num_prefix_tokens, side)
                self.grid_modules.append(block.attn)


class WindowedAttention(nn.Module):
    """Attention within windows of the grid of cells.

    Args:
        attention: timm's, over (B, N, E).
        prefix: number of tokens before the cells; each window gets a copy of them, and the outputs are averaged.
        side: of a window, at most, in cells; the fewest such windows divide the grid evenly.
    """

    def __init__(self, attention: nn.Module, prefix: int, side: int):
        super().__init__()
        self.attention, self.prefix, self.side = attention, prefix, side
        self.grid = (0, 0)  # rows and columns of cells, set before each call

    def forward(self, x_BNE: Tensor, rope: Tensor | None = None, **given: Any) -> Tensor:
        """(B, N, E), as attention gives it; `rope` are rotary embeddings (cells, D) or (heads, cells, D)."""
        if max(self.grid) <= self.side:
            return self.attention(x_BNE, **given) if rope is None else self.attention(x_BNE, rope=rope, **given)
        windows_BWME = self._split(x_BNE[:, self.prefix :])
        batch, count = windows_BWME.shape[:2]
        if rope is not None:
            rope_WHMD = self._split(rope if rope.ndim == 3 else rope[None]).transpose(0, 1)
            given["rope"] = rope_WHMD.repeat(batch, 1, 1, 1)
        copies_BWPE = x_BNE[:, None, : self.prefix].expand(-1, count, -1, -1)
        output_XNE = self.attention(torch.cat([copies_BWPE, windows_BWME], 2).flatten(0, 1), **given)
        output_BWNE = output_XNE.unflatten(0, (batch, count))
        return torch.cat([output_BWNE[:, :, : self.prefix].mean(1), self._join(output_BWNE[:, :, self.prefix :])], 1)

    def _split(self, x_BNE: Tensor) -> Tensor:
        """(B, windows, cells per window, E)."""
        (rows, height, rows_X, _), (columns, width, columns_X, _) = (divide(count, self.side) for count in self.grid)
        x_BHWE = x_BNE.unflatten(1, self.grid)
        if len(rows_X) > self.grid[0]:
            x_BHWE = x_BHWE[:, rows_X]
        if len(columns_X) > self.grid[1]:
            x_BHWE = x_BHWE[:, :, columns_X]
        x_BRHCWE = x_BHWE.unflatten(2, (columns, width)).unflatten(1, (rows, height))
        return x_BRHCWE.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def _join(self, x_BWME: Tensor) -> Tensor:
        """The inverse of `_split`; a cell in two windows is taken from the first."""
        (rows, height, _, rows_H), (columns, width, _, columns_W) = (divide(count, self.side) for count in self.grid)
        x_BRCHWE = x_BWME.unflatten(2, (height, width)).unflatten(1, (rows, columns))
        x_BHWE = x_BRCHWE.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        if rows * height > self.grid[0]:
            x_BHWE = x_BHWE[:, rows_H]
        if columns * width > self.grid[1]:
            x_BHWE = x_BHWE[:, :, columns_W]
        return x_BHWE.flatten(1, 2)


def divide(count: int, side: int) -> tuple[int, int, list[int], list[int]]:
    """Divide a line of cells into the fewest windows of one length, at most `side`; they overlap if need be.

    Returns:
        Number of windows; their length; the cells of all windows, one after the other; and the position of each cell in
        that list.
    """
    windows = math.ceil(count / side)
    length = math.ceil(count / windows)
    starts = [n * (count - length) // max(windows - 1, 1) for n in range(windows)]
    cells = [start + n for start in starts for n in range(length)]
    return windows, length, cells, [cells.index(cell) for cell in range(count)]


class ConvolvedActivation(nn.Module):
    """A depth-wise 3x3 convolution of the cells, then an activation; the zero padding shows where the edges are.

    The convolution begins as the identity, so that a pretrained MLP begins unchanged.

    Args:
        activation: of the MLP.
        width: of the MLP's hidden layer.
        prefix: number of tokens before the cells, which are not convolved.
    """

    def __init__(self, activation: nn.Module, width: int, prefix: int):
        super().__init__()
        self.activation, self.prefix = activation, prefix
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.grid = (0, 0)  # rows and columns of cells, set before each call
        nn.init.dirac_(self.conv.weight, groups=width)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x_BNE: Tensor) -> Tensor:
        """Same shape as given."""
        cells_BEHW = x_BNE[:, self.prefix :].transpose(1, 2).unflatten(2, self.grid)
        cells_BNE = self.conv(cells_BEHW).flatten(2).transpose(1, 2)
        return self.activation(torch.cat([x_BNE[:, : self.prefix], cells_BNE], 1))


def _prepare(vit: Any) -> int:
    """Remove what follows the last block's norm, resize odd patches to 16 pixels; return their side."""
    if isinstance(vit.norm, nn.Identity):  # where the classifier averages cells, the norm follows the average
        vit.norm = vit.fc_norm
    vit.prune_intermediate_layers([len(vit.blocks) - 1], prune_norm=False)
    patch = int(vit.feature_info[-1]["reduction"])
    if patch & (patch - 1):
        require(patch < 16, f"patches of {patch} pixels are too large.")
        rows, columns = vit.patch_embed.grid_size
        vit.set_input_size(img_size=(16 * rows, 16 * columns), patch_size=(16, 16))
        patch = 16
    return patch

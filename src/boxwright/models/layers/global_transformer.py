"""The parts of `detr` with proposals: global attention over the cells of few maps, content and position apart.

The encoder is a hybrid (RT-DETR, Zhao et al. 2024): self-attention of the coarse maps' cells, then coarse maps are
added to finer ones. In the decoder's cross-attention, the agreement of content and that of position are added
("Conditional DETR", Meng et al. 2021), and the position of a query depends on the size of its box ("DAB-DETR", Liu et
al. 2022).

How positions are compared is ours. A head looks at a point of the query's box, and cells near it get high scores,
whatever the weights are at the beginning: the score is a sum of cosines of the distance, in octaves, without those that
are finer than the box. So attention falls with a power of the distance beyond a part of the box's size. Points, sizes
and powers depend on the content of the query. As a sum of products of sines it is plain attention, over all cells.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from boxwright.models.layers.attention import Attention
from boxwright.models.layers.deformable_transformer import Maps, MultiScaleCells, flatten_maps
from boxwright.models.layers.dropout import Dropout
from boxwright.models.layers.kv_cache import KeysValues
from boxwright.models.layers.post_norm import PostNormEncoderBlock, mlp, sine_2d

OCTAVES = 5  # the finest wave is an eighth of the image long
POWER = 2.0  # initial height of each wave, in the logit
REACH = 0.5  # initial size of what a head looks at, in half sizes of the box


class ConditionalAttention(Attention):
    """Cross-attention from boxes to cells: scores of content plus scores of position.

    Its queries are states with their boxes behind them, (B, Q, dim + 4).
    """

    def __init__(self, dim: int, heads: int):
        super().__init__(dim, heads)
        self.aim = nn.Linear(dim, heads * 5)  # point (x, y), log of reach (x, y), log of power
        nn.init.zeros_(self.aim.weight)
        angles_H = torch.arange(heads) * (2 * math.pi / heads)
        radius_H = 0.75 * (torch.arange(heads) % 3) / 2  # the centre, halfway, near the sides
        points_H2 = torch.stack([angles_H.cos(), angles_H.sin()], -1) * radius_H[:, None]
        rest_H3 = torch.tensor([math.log(REACH)] * 2 + [math.log(POWER)]).expand(heads, -1)
        with torch.no_grad():
            self.aim.bias.copy_(torch.cat([points_H2, rest_H3], -1).flatten())

    def keys_values(self, source_BME: Tensor, values_BME: Tensor | None = None) -> KeysValues:
        """Not used: positions are needed, too; see `cells`."""
        raise NotImplementedError

    def cells(self, source_BTE: Tensor, values_BTE: Tensor, centres_BT2: Tensor) -> KeysValues:
        """Keys and values of cells.

        Args:
            source_BTE: what content is compared with.
            values_BTE: what queries get.
            centres_BT2: x and y of the cells, in [0, 1] of the image.
        """
        content_BHTE, values_BHTE = super().keys_values(source_BTE, values_BTE)
        waves_BHTP = _waves(centres_BT2).to(content_BHTE).flatten(-2)[:, None].expand(-1, self.heads, -1, -1)
        padded_BHTE = F.pad(values_BHTE, (0, 4 * OCTAVES))  # as wide as keys, so that a fast kernel is used
        return KeysValues(torch.cat([content_BHTE, waves_BHTP], -1), padded_BHTE)

    def queries(self, x_BLE: Tensor) -> Tensor:
        """Queries of each head: content, then position."""
        x_BLE, boxes_BL4 = x_BLE[..., :-4], x_BLE[..., -4:].float()
        content_BHLE = super().queries(x_BLE)
        half_BL12 = boxes_BL4[:, :, None, 2:] / 2
        point, reach, power = self.aim(x_BLE).float().unflatten(-1, (self.heads, 5)).split([2, 2, 1], -1)
        centres_BLH2 = boxes_BL4[:, :, None, :2] + point * half_BL12
        angles_BLH2O = (reach.exp() * half_BL12)[..., None] * _rates(x_BLE.device)
        heights_BLH2O = power.exp()[..., None] * (-angles_BLH2O.square() / 2).exp()
        waves_BLHP = (_waves(centres_BLH2) * torch.cat([heights_BLH2O] * 2, -1)).flatten(-2)
        width, position = content_BHLE.shape[-1], waves_BLHP.shape[-1]
        scale = math.sqrt(width + position)  # by which attention divides
        parts = content_BHLE * (scale / math.sqrt(width)), (waves_BLHP * scale).transpose(1, 2).to(content_BHLE)
        return torch.cat(parts, -1)

    def forward(
        self, x_BLE: Tensor, keys_values: KeysValues, causal: bool = False, mask: Tensor | None = None
    ) -> Tensor:
        """Attention output, (B, L, E); `mask` is False where not to attend."""
        mixed_BHLE = F.scaled_dot_product_attention(
            self.queries(x_BLE), keys_values.keys_BHLE, keys_values.values_BHLE, attn_mask=mask
        )
        return self.output(mixed_BHLE[..., : -4 * OCTAVES].transpose(1, 2).flatten(2))


def _rates(device: torch.device) -> Tensor:
    """Angles per image side of each octave, (O,)."""
    return math.pi * 2.0 ** torch.arange(OCTAVES, device=device)


def _waves(points: Tensor) -> Tensor:
    """Sines and cosines (..., 2, 2 O) of x and y."""
    angles = points.float()[..., None] * _rates(points.device)
    return torch.cat([angles.sin(), angles.cos()], -1)


class GlobalEncoder(nn.Module):
    """Self-attention of all cells of all maps but the finest, then coarse maps are added to finer ones.

    Args:
        channels: of the backbone's maps.
        dim, hidden, heads, layers, dropout: of the transformer.
    """

    def __init__(self, channels: Sequence[int], dim: int, hidden: int, heads: int, layers: int, dropout: float):
        super().__init__()
        self.maps = Maps(channels, 0, dim, fused=True)
        self.first = min(1, len(channels) - 1)  # of the maps that attend
        self.level_embedding = nn.Parameter(torch.randn(len(channels) - self.first, dim))
        self.layers = nn.ModuleList(PostNormEncoderBlock(dim, hidden, heads, dropout) for _ in range(layers))

    def forward(self, features: Sequence[Tensor], valid: Sequence[Tensor]) -> MultiScaleCells:
        """The cells of all maps; `valid` is False where a cell is padding, (B, H, W) each."""
        maps = self.maps.project(features)
        maps[self.first :] = self._attend(maps[self.first :], valid[self.first :])
        return flatten_maps(self.maps.fuse(maps), valid)

    def _attend(self, maps: list[Tensor], valid: Sequence[Tensor]) -> list[Tensor]:
        codes = [sine_2d(valid_BHW, maps[0].shape[1], True, shift=0.5) for valid_BHW in valid]
        codes = [code_BME + level_E for code_BME, level_E in zip(codes, self.level_embedding, strict=True)]
        positions_BME, cells = torch.cat(codes, 1).to(maps[0].dtype), flatten_maps(maps, valid)
        x_BME, valid_B11M = cells.x_BTE, ~cells.padding_BT[:, None, None]
        for layer in self.layers:
            x_BME = layer(x_BME, positions_BME, valid_B11M)
        parts = x_BME.transpose(1, 2).split([height * width for height, width in cells.shapes], -1)
        return [part_BEM.unflatten(-1, shape) for part_BEM, shape in zip(parts, cells.shapes, strict=True)]


class GlobalDecoder(nn.Module):
    """The layers that the queries go through."""

    def __init__(self, dim: int, hidden: int, heads: int, levels: int, layers: int, dropout: float):
        super().__init__()
        self.layers = nn.ModuleList(GlobalDecoderLayer(dim, hidden, heads, levels, dropout) for _ in range(layers))


class GlobalDecoderLayer(nn.Module):
    """Self-attention of the queries, attention to all cells, then an MLP."""

    def __init__(self, dim: int, hidden: int, heads: int, levels: int, dropout: float):
        super().__init__()
        self.level_embedding = nn.Parameter(torch.randn(levels, dim))
        self.self_attention, self.cross_attention = Attention(dim, heads), ConditionalAttention(dim, heads)
        self.mlp = mlp(dim, hidden, dropout)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.dropout = Dropout(dropout)

    def forward(
        self, x_BQE: Tensor, positions_BQE: Tensor, boxes_BQ4: Tensor, cells: MultiScaleCells, mask: Tensor | None
    ) -> Tensor:
        """States of the queries after this layer, (B, Q, E).

        Args:
            x_BQE, positions_BQE, boxes_BQ4: of the queries.
            cells: what they attend to.
            mask: False where a query may not attend to another, or a bias of the attention, (B, 1 or heads, Q, Q).
        """
        positioned_BQE = x_BQE + positions_BQE
        keys_values = self.self_attention.keys_values(positioned_BQE, x_BQE)
        x_BQE = self.norm1(x_BQE + self.dropout(self.self_attention(positioned_BQE, keys_values, mask=mask)))
        x_BQE = self.norm2(x_BQE + self.dropout(self._attend(x_BQE, boxes_BQ4, cells)))
        return self.norm3(x_BQE + self.dropout(self.mlp(x_BQE)))

    def _attend(self, x_BQE: Tensor, boxes_BQ4: Tensor, cells: MultiScaleCells) -> Tensor:
        source_BTE = cells.x_BTE + self.level_embedding[cells.level_T]
        keys_values = self.cross_attention.cells(source_BTE, cells.x_BTE, cells.centres_BT2)
        with_boxes_BQE = torch.cat([x_BQE, boxes_BQ4], -1)
        return self.cross_attention(with_boxes_BQE, keys_values, mask=~cells.padding_BT[:, None, None])

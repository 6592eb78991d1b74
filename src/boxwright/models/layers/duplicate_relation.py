"""How candidates for the same object relate: which ones overlap, and which of two scores better.

A candidate can only know that it is a duplicate if it attends to the better one. Their relation is added to attention
as a bias ("Relation networks for object detection", Hu et al. 2018), so that no NMS is needed afterwards.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from boxwright.boxes import iou

STRENGTH = 6.0  # initial penalty on the logit of a full duplicate, as in Soft-NMS (Bodla et al. 2017)


def relation(logits_BRK: Tensor, boxes_BR4: Tensor) -> Tensor:
    """The relation of each candidate to each other one, (B, 4, R, R).

    IoU; whether the other scores better; whether both have the same class; and the product of the three.

    Args:
        logits_BRK: class scores of R candidates, before the sigmoid.
        boxes_BR4: xyxy.
    """
    best_BR, label_BR = logits_BRK.max(-1)
    overlap_BRR = iou(boxes_BR4[:, :, None], boxes_BR4[:, None])
    better_BRR = (best_BR[:, None] > best_BR[..., None]).to(overlap_BRR)
    same_BRR = (label_BR[:, None] == label_BR[..., None]).to(overlap_BRR)
    return torch.stack([overlap_BRR, better_BRR, same_BRR, overlap_BRR * better_BRR * same_BRR], 1)


def relation_bias(linear: nn.Module, relation_B4RR: Tensor) -> Tensor:
    """A bias of attention (B, heads, R, R): a linear layer over the relation of each pair.

    The layer is applied to each plane alone, so that pairs lie last and no large tensor is transposed. Its constant is
    left out, as softmax ignores it.
    """
    units_54 = torch.eye(5, 4, dtype=relation_B4RR.dtype, device=relation_B4RR.device)  # and, at last, none
    *planes, none_H = linear(units_54)
    weight_H4 = torch.stack([plane_H - none_H for plane_H in planes], -1)
    return (weight_H4 @ relation_B4RR.flatten(2).to(weight_H4.dtype)).unflatten(-1, relation_B4RR.shape[-2:])


class DuplicateBias(nn.Module):
    """The relation of queries as a bias of self-attention, for each layer of a decoder.

    Args:
        heads: attention heads of a layer.
        layers: number of layers.
    """

    def __init__(self, heads: int, layers: int):
        super().__init__()
        self.bias = nn.ModuleList(nn.Linear(4, heads) for _ in range(layers))
        self.strength = nn.Parameter(torch.tensor(STRENGTH))

    def lower_duplicates(self, logits_BQR: Tensor, boxes_BQ4: Tensor, allowed_BQQ: Tensor | None) -> Tensor:
        """Initial scores, lower where a better query predicts the same; only queries that may attend are compared."""
        duplicate_BQQ = relation(logits_BQR, boxes_BQ4)[:, -1]
        duplicate_BQQ = duplicate_BQQ if allowed_BQQ is None else duplicate_BQQ * allowed_BQQ
        return logits_BQR - self.strength * duplicate_BQQ.amax(-1, keepdim=True).square()

    def forward(self, layer: int, logits_BQR: Tensor, boxes_BQ4: Tensor, allowed_BQQ: Tensor | None) -> Tensor:
        """The bias (B, heads, Q, Q) of a layer's attention, -inf where a query may not attend to another."""
        bias_BHQQ = relation_bias(self.bias[layer], relation(logits_BQR, boxes_BQ4))
        return bias_BHQQ if allowed_BQQ is None else bias_BHQQ.masked_fill(~allowed_BQQ[:, None], -torch.inf)


class DuplicateRelationLayer(nn.Module):
    """Pre-norm attention with a bias from the relation of each pair, then a two-layer perceptron."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.bias = nn.Linear(4, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x_BRC: Tensor, relation_B4RR: Tensor) -> Tensor:
        """States of the candidates (B, R, C) after attending to each other."""
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.qkv(self.norm(x_BRC)).chunk(3, -1))
        bias_BHRR = relation_bias(self.bias, relation_B4RR)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias_BHRR.to(q.dtype))
        x_BRC = x_BRC + self.out(attended.transpose(1, 2).flatten(2))
        return x_BRC + self.mlp(self.norm_mlp(x_BRC))

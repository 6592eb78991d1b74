"""How candidates for the same objects relate: who overlaps whom, and who of them scores better.

A candidate can only know that it should keep quiet if it sees the one that does better. What tells it is put into
attention as a bias ("Relation networks for object detection", Hu et al. 2018), so that nothing need be suppressed
afterwards.
"""

import torch
from torch import Tensor, nn

from boxwright.boxes import iou

STRENGTH = 6.0  # by how much a candidate begins lower for a better one in the same place, as in Soft-NMS


def relation(logits_BRK: Tensor, boxes_BR4: Tensor) -> Tensor:
    """(B, R, R, 4) of each candidate to each other one: overlap; whether that one scores better; whether both mean the
    same class; and the product of the three, the threat.

    Args:
        logits_BRK: scores of R candidates for each class, before the sigmoid.
        boxes_BR4: xyxy.
    """
    best_BR, label_BR = logits_BRK.max(-1)
    overlap_BRR = iou(boxes_BR4[:, :, None], boxes_BR4[:, None])
    better_BRR = (best_BR[:, None] > best_BR[..., None]).to(overlap_BRR)
    same_BRR = (label_BR[:, None] == label_BR[..., None]).to(overlap_BRR)
    return torch.stack([overlap_BRR, better_BRR, same_BRR, overlap_BRR * better_BRR * same_BRR], -1)


class DuplicateBias(nn.Module):
    """What each layer of a decoder is told of how its queries relate.

    Args:
        heads: of the layers' attention.
        layers: how many.
    """

    def __init__(self, heads: int, layers: int):
        super().__init__()
        self.bias = nn.ModuleList(nn.Linear(4, heads) for _ in range(layers))
        self.strength = nn.Parameter(torch.tensor(STRENGTH))

    def lowered(self, logits_BQR: Tensor, boxes_BQ4: Tensor, apart_BQQ: Tensor | None) -> Tensor:
        """Scores that begin lower where a better rival says the same; queries kept apart are no rivals."""
        threat_BQQ = relation(logits_BQR, boxes_BQ4)[..., -1]
        threat_BQQ = threat_BQQ if apart_BQQ is None else threat_BQQ * apart_BQQ
        return logits_BQR - self.strength * threat_BQQ.amax(-1, keepdim=True).square()

    def forward(self, layer: int, logits_BQR: Tensor, boxes_BQ4: Tensor, apart_BQQ: Tensor | None) -> Tensor:
        """The bias (B, heads, Q, Q) of a layer's attention; queries kept apart don't see each other."""
        bias_BHQQ = self.bias[layer](relation(logits_BQR, boxes_BQ4)).permute(0, 3, 1, 2)
        return bias_BHQQ if apart_BQQ is None else bias_BHQQ.masked_fill(~apart_BQQ[:, None], -torch.inf)

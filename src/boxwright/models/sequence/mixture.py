"""The distribution of an object's tokens as a mixture of boxes: copied proposals, and one of the decoder's own.

Each component says its four sides, then a class or noise. The next token is mixed from all components, weighted by how
well they explain the tokens before it, so that the product over an object's tokens is its probability exactly.

B counts images, N objects of an image (of several sequences, too), C proposals; the own box is the last of C + 1
components.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from boxwright.models.sequence.side_distributions import SideTables, mixed, picked
from boxwright.models.sequence.vocabulary import NOISE

LEAST = 1e-12  # probability of a token, so that logarithms stay finite


class Sides(NamedTuple):
    """Where the sides of the components lie.

    Attributes:
        copied: of the C proposals of each of B images.
        own: of the own boxes, one for each of B * N objects.
        vocabulary: in which tokens they are written.
    """

    copied: SideTables
    own: SideTables
    vocabulary: Any

    def evidence(self, slot: int, tokens_BNS: Tensor) -> Tensor:
        """The log-probability (B, N, C + 1) of the token of a slot for each component, given those before it."""
        index_BN = tokens_BNS[..., slot] - self.vocabulary.first_of(slot)
        counted, own = self._factors(slot, tokens_BNS)
        index_BN = index_BN.clamp(0, _count(counted) - 1)  # tokens that are no coordinates have no object
        own_BN1 = picked(own, index_BN.reshape(-1, 1)).view(*index_BN.shape, 1)
        return torch.cat([picked(counted, index_BN), own_BN1], -1).log()

    def coordinate_logits(self, slot: int, log_weights_BNC: Tensor, tokens_BNS: Tensor) -> Tensor:
        """Logits (B, N, V) of the token of a slot, for weights given the tokens before it."""
        weights_BNC = log_weights_BNC.softmax(-1)
        copied, own = self._factors(slot, tokens_BNS)
        own_weight_BN1 = weights_BNC[..., -1:]
        own_BNX = mixed(own_weight_BN1.reshape(-1, 1, 1), own).view(*own_weight_BN1.shape[:2], -1)
        probs_BNX = mixed(weights_BNC[..., :-1], copied) + own_BNX
        first = self.vocabulary.first_of(slot)
        rest = self.vocabulary.size - first - probs_BNX.shape[-1]
        return F.pad(probs_BNX.clamp(min=LEAST).log(), (first, rest), value=math.log(LEAST))

    def _factors(self, slot: int, tokens_BNS: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        own_tokens = tokens_BNS.flatten(0, 1)[:, None]
        factors = self.vocabulary.factors
        return factors(slot, self.copied, tokens_BNS), factors(slot, self.own, own_tokens)


def _count(factors: tuple[Tensor, ...]) -> int:
    count = 1
    for table in factors:
        count *= table.shape[-1]
    return count


def class_logits(log_weights_BNC: Tensor, classes_BNCK: Tensor, class_tokens_K: Tensor, size: int) -> Tensor:
    """Logits (B, N, V) of the class token, for weights given the box.

    Args:
        log_weights_BNC: of the components.
        classes_BNCK: log-probabilities of noise, then of each class, in each component.
        class_tokens_K: ids of the classes.
        size: number of ids.
    """
    log_probs_BNK = (log_weights_BNC.log_softmax(-1)[..., None] + classes_BNCK).logsumexp(2)
    noise_1 = torch.full_like(class_tokens_K[:1], NOISE)
    ids_BNK = torch.cat([noise_1, class_tokens_K]).expand(*log_probs_BNK.shape)
    nothing_BNV = torch.full((*log_probs_BNK.shape[:2], size), math.log(LEAST), device=log_probs_BNK.device)
    return nothing_BNV.scatter(2, ids_BNK, log_probs_BNK)

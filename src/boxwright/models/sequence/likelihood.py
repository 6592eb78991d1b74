"""How probable sentences are, and what their objects are worth."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from boxwright.config import require
from boxwright.models.sequence.generation import Generated

Scores = Literal["full", "classes", "product"]
Reading = Callable[[Tensor, Any], Tensor]  # a decoder: scores (B, L, V) of what follows each token of sentences


def log_probs(decoder: Reading, memory: Any, read_BL: Tensor, said_BL: Tensor) -> Tensor:
    """The log-probability of each token of given sentences, (B, L), among all tokens of the vocabulary.

    Args:
        decoder: in evaluation mode.
        memory: what it looks at.
        read_BL: what it reads before each token: the start token, then the sentence, one place later.
        said_BL: the sentences.
    """
    scores_BLV = decoder(read_BL, memory)
    return -F.cross_entropy(scores_BLV.flatten(0, 1), said_BL.flatten(), reduction="none").view_as(said_BL)


def sequence_log_probs(tokens_BL: Tensor, decoder: Reading, memory: Any, start: int) -> Tensor:
    """The same of sentences that are read as they are said, classes included; as generated ones are."""
    return log_probs(decoder, memory, F.pad(tokens_BL[:, :-1], (1, 0), value=start), tokens_BL)


def object_log_probs(log_probs_BL: Tensor, slots: int = 5) -> Tensor:
    """The log-probability of each object, all its tokens together, (B, N)."""
    return log_probs_BL.unflatten(1, (-1, slots)).sum(-1)


def score(
    said: Generated, how: Scores, slots: int = 5, classes: Sequence[int] | Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scores in [0, 1] and class positions of the objects of generated sentences, each (B, N).

    The class is the most probable one, whichever token was written; given objects, and places behind the end, have
    score 0.

    Args:
        said: the sentences; the class is an object's last token.
        how: "full" is the class's probability among all tokens, as in the published code: high only if it is an object,
            and of this class. "classes" is that among all classes alone, which says nothing of noise. "product" is
            "full" times the geometric mean of the probabilities of the written coordinates.
        slots: tokens of an object.
        classes: positions of those that count, or a mask (K,); by default all. Their scores are the same with and
            without the others.

    Raises:
        UserError: for no such kind of score.
    """
    kinds = get_args(Scores)
    require(how in kinds, f"scores is one of {', '.join(kinds)}, not {how!r}.")
    class_BNK = said.class_log_probs_BNK
    if how == "classes":
        class_BNK = class_BNK.log_softmax(-1).where(class_BNK > -torch.inf, -torch.inf)
    if classes is not None:
        class_BNK = class_BNK.masked_fill(~_mask(classes, class_BNK), -torch.inf)
    best_BN, labels_BN = class_BNK.max(-1)
    if how == "product":
        best_BN = best_BN + said.log_probs_BL.unflatten(1, (-1, slots))[..., :-1].mean(-1)
    return best_BN.exp(), labels_BN


def _mask(classes: Sequence[int] | Tensor, class_BNK: Tensor) -> Tensor:
    if isinstance(classes, Tensor):
        return classes
    wanted_K = torch.zeros(class_BNK.shape[-1], dtype=torch.bool, device=class_BNK.device)
    wanted_K[list(classes)] = True
    return wanted_K

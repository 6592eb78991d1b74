"""Log-probabilities of sequences, and scores of their objects."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from boxwright.config import require
from boxwright.models.sequence.generation import Generated

Scores = Literal["full", "classes", "product"]
ParallelDecoder = Callable[[Tensor, Any], Tensor]  # logits (B, L, V) of what follows each token of whole sequences


def log_probs(decoder: ParallelDecoder, memory: Any, inputs_BL: Tensor, targets_BL: Tensor) -> Tensor:
    """The log-probability of each target, (B, L), among the whole vocabulary.

    Args:
        decoder: in evaluation mode.
        memory: what it attends to.
        inputs_BL: the start token, then the sequence.
        targets_BL: the sequence, one position ahead.
    """
    logits_BLV = decoder(inputs_BL, memory)
    return -F.cross_entropy(logits_BLV.flatten(0, 1), targets_BL.flatten(), reduction="none").view_as(targets_BL)


def sequence_log_probs(tokens_BL: Tensor, decoder: ParallelDecoder, memory: Any, start: int) -> Tensor:
    """The log-probability of each token of sequences, (B, L), with the true classes as inputs, as in generation."""
    return log_probs(decoder, memory, F.pad(tokens_BL[:, :-1], (1, 0), value=start), tokens_BL)


def object_log_probs(log_probs_BL: Tensor, slots: int = 5) -> Tensor:
    """The sum of the log-probabilities of each object's tokens, (B, N)."""
    return log_probs_BL.unflatten(1, (-1, slots)).sum(-1)


def score_objects(
    generated: Generated, how: Scores, slots: int = 5, classes: Sequence[int] | Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scores in [0, 1] and class positions of the objects of generated sequences, each (B, N).

    The class is the most probable one, whichever token was generated; given objects, and slots behind the end, have
    score 0.

    Args:
        generated: the sequences; the class is an object's last token.
        how: "full" is the class's probability among all tokens, as in the published code: high only if it is an object,
            and of this class. "classes" is the probability among all classes alone, without noise. "product" is "full"
            times the geometric mean of the probabilities of the generated coordinates.
        slots: tokens of an object.
        classes: positions of the classes that may be predicted, or a mask (K,); by default all. Their scores do not
            depend on the others.

    Raises:
        UserError: for any other kind of score.
    """
    kinds = get_args(Scores)
    require(how in kinds, f"scores is one of {', '.join(kinds)}, not {how!r}.")
    class_BNK = generated.class_log_probs_BNK
    if how == "classes":
        class_BNK = class_BNK.log_softmax(-1).where(class_BNK > -torch.inf, -torch.inf)
    if classes is not None:
        class_BNK = class_BNK.masked_fill(~_mask(classes, class_BNK), -torch.inf)
    best_BN, labels_BN = class_BNK.max(-1)
    if how == "product":
        best_BN = best_BN + generated.log_probs_BL.unflatten(1, (-1, slots))[..., :-1].mean(-1)
    return best_BN.exp(), labels_BN


def _mask(classes: Sequence[int] | Tensor, class_BNK: Tensor) -> Tensor:
    if isinstance(classes, Tensor):
        return classes
    wanted_K = torch.zeros(class_BNK.shape[-1], dtype=torch.bool, device=class_BNK.device)
    wanted_K[list(classes)] = True
    return wanted_K

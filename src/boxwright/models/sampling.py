"""How a token is chosen from its scores."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor


class Sampling(NamedTuple):
    """How sentences are chosen.

    Attributes:
        top_p: 0 takes the most probable token (greedy). More draws one from the nucleus, 1 from all.
        nucleus: which tokens are in it: see `in_nucleus`.
        top_k: draw only from the k most probable; 0 from all.
        temperature: scores are divided by it before drawing.
        seed: of the draws, for each image the same or one for each; what is drawn for an image doesn't depend on its
            neighbours.
        end_bias: added to the score of the token that ends a sentence: 0 ends as the model says, more sooner, less
            later, -inf never.
        repeats: whether an object may be written twice, all its words the same.
        beams: sentences that compete for each image, object by object; see `boxwright.models.beam`.
    """

    top_p: float = 0.0
    nucleus: Literal["official", "standard"] = "official"
    top_k: int = 0
    temperature: float = 1.0
    seed: int | tuple[int, ...] = 0
    end_bias: float = -torch.inf
    repeats: bool = True
    beams: int = 1

    @property
    def may_end(self) -> bool:
        """Whether sentences can be shorter than asked."""
        return self.end_bias > -torch.inf


def choose(scores_BV: Tensor, sampling: Sampling, uniform_B1: Tensor) -> Tensor:
    """One token a row, (B, 1).

    Args:
        scores_BV: -inf for tokens that can't be chosen.
        sampling: how to choose.
        uniform_B1: a draw from [0, 1) for each row.
    """
    if sampling.top_p == 0:
        return scores_BV.argmax(-1, keepdim=True)
    kept_BV = scores_BV / sampling.temperature
    if sampling.top_k:
        kept_BV = in_top(kept_BV, sampling.top_k)
    if sampling.top_p < 1:
        kept_BV = in_nucleus(kept_BV, sampling.top_p, sampling.nucleus)
    below_BV = kept_BV.softmax(-1).cumsum(-1)
    return (below_BV <= uniform_B1 * below_BV[:, -1:]).sum(-1, keepdim=True)


def in_top(scores_BV: Tensor, top_k: int) -> Tensor:
    """Scores with all but the `top_k` largest, and those equal to the last of them, at -inf."""
    least_B1 = scores_BV.topk(min(top_k, scores_BV.shape[-1])).values[:, -1:]
    return scores_BV.masked_fill(scores_BV < least_B1, -torch.inf)


def in_nucleus(scores_BV: Tensor, top_p: float, rule: Literal["official", "standard"] = "official") -> Tensor:
    """Scores with all tokens outside the nucleus at -inf: the most probable tokens that together reach `top_p`.

    The rules differ in the token that crosses the line. "official" (google-research/pix2seq,
    architectures/transformers.py) leaves it out, though never the most probable token: what is kept adds up to at most
    `top_p`. "standard" (Holtzman et al. 2020) keeps it: what is kept adds up to at least `top_p`.
    """
    sorted_BV = scores_BV.sort(-1, descending=True).values
    shares_BV = sorted_BV.softmax(-1)
    reached_BV = shares_BV.cumsum(-1)
    inside_BV = reached_BV <= top_p if rule == "official" else reached_BV - shares_BV < top_p
    count_B1 = inside_BV.sum(-1, keepdim=True).clamp(min=1)
    return scores_BV.masked_fill(scores_BV < sorted_BV.gather(-1, count_B1 - 1), -torch.inf)


def draws(seed: int | tuple[int, ...], rows: int, length: int) -> Tensor:
    """Uniform draws from [0, 1), (rows, length): each row is a function of its seed alone."""
    seeds = (seed,) * rows if isinstance(seed, int) else seed
    assert len(seeds) == rows, f"{len(seeds)} seeds for {rows} sentences"
    return torch.stack([torch.rand(length, generator=torch.Generator().manual_seed(one)) for one in seeds])

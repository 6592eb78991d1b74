"""How a token is chosen from its scores."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from boxwright.config import require

RULES = ("official", "standard")  # of the nucleus
SEEDS = 2**63  # what torch can begin to draw with


class Sampling(NamedTuple):
    """How tokens are chosen.

    Attributes:
        top_p: more than 0 draws a token from the nucleus, 1 from all. With 0, and no `top_k`, the most probable token
            is chosen (greedy).
        nucleus: which tokens are in it: see `in_nucleus`.
        top_k: draw only from the k most probable, whether or not there is a nucleus; 0 from all.
        temperature: scores are divided by it before drawing.
        seed: of the draws, one for all images or one for each; the draws of an image do not depend on the others in
            the batch.
        end_bias: added to the logit of the end token: 0 ends as the model predicts, more sooner, less later, -inf
            never.
        repeats: whether an object may be generated twice, with all its tokens the same.
        beams: sequences that compete for each image, object by object; see `boxwright.models.sequence.beam_search`.
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
        """Whether sequences can end before the last object."""
        return self.end_bias > -torch.inf

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn at random."""
        return self.top_p > 0 or self.top_k > 0

    def check(self) -> None:
        """Raise `UserError` for a setting out of its range, or two that exclude each other."""
        seeds = (self.seed,) if isinstance(self.seed, int) else self.seed
        require(self.nucleus in RULES, f"nucleus is {' or '.join(RULES)}, not {self.nucleus!r}.")
        require(0 <= self.top_p <= 1, f"top_p is 0 (off) to 1 (draw from all words), not {self.top_p}.")
        require(_whole(self.top_k, 0), f"top_k is a whole number, at least 0 (off), not {self.top_k}.")
        warm = 0 < self.temperature < torch.inf
        require(warm, f"temperature is over 0, and finite, not {self.temperature}; top_p=0 and top_k=0 draw nothing.")
        ends = self.end_bias < torch.inf  # false for what is no number, too
        require(ends, f"end_bias is a number, or -inf to never end, not {self.end_bias}; 1000 ends at once.")
        require(_whole(self.beams, 1), f"beams is a whole number, at least 1 (off), not {self.beams}.")
        alone = self.beams == 1 or not self.draws
        require(alone, f"beams={self.beams} draws nothing: set top_p=0 and top_k=0, or beams=1.")
        small = all(_whole(seed, 0) and seed < SEEDS for seed in seeds)
        require(small, f"a seed is a whole number from 0 to 2^63 - 1, not {self.seed}.")


def _whole(value: float, least: int) -> bool:
    return isinstance(value, int) and value >= least


def choose(logits_BV: Tensor, sampling: Sampling, draws_B1: Tensor | None) -> Tensor:
    """One token per row, (B, 1).

    Args:
        logits_BV: -inf for tokens that can't be chosen.
        sampling: how to choose.
        draws_B1: a draw from [0, 1) for each row; needed only if tokens are drawn.
    """
    if not sampling.draws:
        return logits_BV.argmax(-1, keepdim=True)
    assert draws_B1 is not None
    kept_BV = logits_BV / sampling.temperature
    if sampling.top_k:
        kept_BV = in_top(kept_BV, sampling.top_k)
    if 0 < sampling.top_p < 1:
        kept_BV = in_nucleus(kept_BV, sampling.top_p, sampling.nucleus)
    below_BV = kept_BV.softmax(-1).cumsum(-1)
    return (below_BV <= draws_B1 * below_BV[:, -1:]).sum(-1, keepdim=True)


def in_top(logits_BV: Tensor, top_k: int) -> Tensor:
    """Logits with all but the `top_k` largest, and those equal to the last of them, at -inf."""
    least_B1 = logits_BV.topk(min(top_k, logits_BV.shape[-1])).values[:, -1:]
    return logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)


def in_nucleus(logits_BV: Tensor, top_p: float, rule: Literal["official", "standard"] = "official") -> Tensor:
    """Logits with all tokens outside the nucleus at -inf: the most probable tokens that together reach `top_p`.

    The rules differ in the token that crosses the line. "official" (google-research/pix2seq,
    architectures/transformers.py) leaves it out, though never the most probable token: what is kept adds up to at most
    `top_p`. "standard" (Holtzman et al. 2020) keeps it: what is kept adds up to at least `top_p`.
    """
    sorted_BV = logits_BV.sort(-1, descending=True).values
    shares_BV = sorted_BV.softmax(-1)
    reached_BV = shares_BV.cumsum(-1)
    inside_BV = reached_BV <= top_p if rule == "official" else reached_BV - shares_BV < top_p
    count_B1 = inside_BV.sum(-1, keepdim=True).clamp(min=1)
    return logits_BV.masked_fill(logits_BV < sorted_BV.gather(-1, count_B1 - 1), -torch.inf)


def draws(seed: int | tuple[int, ...], rows: int, length: int) -> Tensor:
    """Uniform draws from [0, 1), (rows, length): each row is a function of its seed alone.

    Raises:
        UserError: if there are not as many seeds as rows.
    """
    seeds = (seed,) * rows if isinstance(seed, int) else seed
    require(len(seeds) == rows, f"there are {len(seeds)} seeds for {rows} images; give one for each, or one for all.")
    return uniform(torch.tensor(seeds, dtype=torch.int64)[:, None], torch.arange(length))


def uniform(seeds: Tensor, positions: Tensor) -> Tensor:
    """The draw from [0, 1) of each seed at each position; both int64, at least 0, and they broadcast.

    A hash, not a generator, in plain arithmetic: any device, and an exported graph, draw the same numbers in any order.
    """
    low, high = seeds % 2**32 ^ 0x1E3779B9, seeds // 2**32  # zeros would be mixed to zeros
    return (_mix(_mix(_mix(low) ^ high) ^ positions) // 2**8).float() / 2**24  # as many bits as float32 has


def _mix(x: Tensor) -> Tensor:
    """Another number from 0 to 2^32 - 1 for each: one changed bit of `x` changes each bit of it in about half of all
    cases (xor-shift and multiply). The factors are under 2^31, so that no product overflows.
    """
    for factor in (0x7FEB352D, 0x21F0AAAD, 0x31848BAB):
        x = ((x ^ (x // 2**16)) * factor) % 2**32
    return x ^ (x // 2**15)

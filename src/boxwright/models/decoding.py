"""The one engine that generates sentences: token after token, each chosen from the decoder's scores."""

from typing import NamedTuple

import torch
from torch import Tensor

from boxwright.models.decoder import Decoder


class Sampling(NamedTuple):
    """How a token is chosen from its scores.

    Attributes:
        top_p: 0 takes the most probable token (greedy). Otherwise one is drawn from the nucleus: see `nucleus`.
        temperature: scores are divided by it before choosing.
        seed: of the draws; the same seed writes the same sentences.
    """

    top_p: float = 0.0
    temperature: float = 1.0
    seed: int = 0


class Generated(NamedTuple):
    """Sentences and, for the last slot of every object, the scores of all tokens as the decoder gave them."""

    tokens_BL: Tensor
    logits_BNV: Tensor


@torch.no_grad()
def generate(
    decoder: Decoder, memory_BME: Tensor, prompt: int, objects: int, grammar_SV: Tensor, sampling: Sampling
) -> Generated:
    """Sentences of a fixed number of objects, made without waiting for the device between two tokens.

    Args:
        decoder: in evaluation mode.
        memory_BME: the encoded images.
        prompt: the token every sentence starts from; it is not part of the result.
        objects: how many.
        grammar_SV: which tokens each of the S slots of an object may hold, bool.
        sampling: how to choose.
    """
    slots, length, forbidden_SV = len(grammar_SV), objects * len(grammar_SV), ~grammar_SV
    cache = decoder.start(memory_BME, length)
    dice = torch.Generator(memory_BME.device).manual_seed(sampling.seed)
    tokens_BL = torch.empty(len(memory_BME), length + 1, dtype=torch.long, device=memory_BME.device).fill_(prompt)
    last_slots = []
    for position in range(length):
        logits_BV = decoder.step(tokens_BL[:, position : position + 1], position, cache)
        allowed_BV = logits_BV.masked_fill(forbidden_SV[position % slots], -torch.inf)
        tokens_BL[:, position + 1] = choose(allowed_BV, sampling, dice)
        if position % slots == slots - 1:
            last_slots.append(logits_BV)
    return Generated(tokens_BL[:, 1:], torch.stack(last_slots, 1))


def choose(logits_BV: Tensor, sampling: Sampling, dice: torch.Generator) -> Tensor:
    """One token a row, (B,)."""
    if sampling.top_p == 0:
        return logits_BV.argmax(-1)
    kept_BV = logits_BV / sampling.temperature
    if sampling.top_p < 1:
        kept_BV = nucleus(kept_BV, sampling.top_p)
    waiting_BV = torch.empty_like(kept_BV).exponential_(generator=dice)  # the first of exponential clocks, by its rate
    return (kept_BV - waiting_BV.log()).argmax(-1)


def nucleus(logits_BV: Tensor, top_p: float) -> Tensor:
    """Scores with all tokens outside the nucleus at -inf.

    The rule of google-research/pix2seq (architectures/transformers.py there): the most probable tokens whose
    probabilities, the token's own included, add up to at most `top_p`, and always the most probable one. The usual rule
    (Holtzman et al. 2020) keeps one token more.
    """
    sorted_BV = logits_BV.sort(-1, descending=True).values
    count_B1 = (sorted_BV.softmax(-1).cumsum(-1) <= top_p).sum(-1, keepdim=True).clamp(min=1)
    return logits_BV.masked_fill(logits_BV < sorted_BV.gather(-1, count_B1 - 1), -torch.inf)

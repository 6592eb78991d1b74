"""Generating sequences, with the decoder of any sequence detector.

A decoder is known by its two methods (`boxwright.models.sequence.generation.StepDecoder`), its tokens by
`TokenConstraints`, and how to choose among them by `Sampling`.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from boxwright.models.sequence.beam_search import BeamSearch
from boxwright.models.sequence.generation import Generated, Generation, StepDecoder
from boxwright.models.sequence.sampling import Sampling
from boxwright.models.sequence.token_constraints import TokenConstraints

GREEDY = Sampling()


def begin_generation(
    decoder: StepDecoder,
    memory: Any,
    constraints: TokenConstraints,
    objects: int,
    sampling: Sampling = GREEDY,
    given_BL: Tensor | None = None,
) -> Generation:
    """Sequences of the given objects alone; for the arguments see `generate`."""
    sampling.check()
    generation = Generation if sampling.beams == 1 else BeamSearch
    return generation(decoder, memory, constraints, objects, sampling, given_BL)


def continue_generation(generation: Generation) -> Iterator[int]:
    """Generate object by object; yield the number of each. With beam search, later ones may still replace it."""
    for number in range(generation.first_object, generation.length // generation.constraints.slots):
        if generation.sampling.may_end and bool(generation.ended_B1.all()):
            break
        generation.generate_object(number)
        yield number


def finish_generation(generation: Generation) -> Generated:
    """The whole sequences."""
    for _ in continue_generation(generation):
        pass
    return generation.result()


@torch.no_grad()
def generate(
    decoder: StepDecoder,
    memory: Any,
    constraints: TokenConstraints,
    objects: int,
    sampling: Sampling = GREEDY,
    given_BL: Tensor | None = None,
) -> Generated:
    """Sequences of at most this many objects.

    Where sequences may end, the device is asked once per object whether all have.

    Args:
        decoder: in evaluation mode.
        memory: what it attends to.
        constraints: the tokens allowed at each position.
        objects: the most in a sequence, given ones included.
        sampling: how to choose.
        given_BL: the first tokens of each sequence, whole objects, and -1 behind the last one of a row.

    Raises:
        UserError: for invalid sampling settings.
    """
    return finish_generation(begin_generation(decoder, memory, constraints, objects, sampling, given_BL))

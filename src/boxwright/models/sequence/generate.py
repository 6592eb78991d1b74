"""The one engine that generates sentences, for every detector that writes them.

It knows a decoder only by its two methods (`boxwright.models.sequence.generation.StepDecoder`), its language by a
`TokenConstraints`, and how to choose by a `Sampling`.
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
    """Sentences of which only the given objects stand; for the arguments see `generate`."""
    sampling.check()
    kind = Generation if sampling.beams == 1 else BeamSearch
    return kind(decoder, memory, constraints, objects, sampling, given_BL)


def continue_generation(generation: Generation) -> Iterator[int]:
    """Write the sentences, and say after each object which it was. With beams, it may still become another one."""
    for number in range(generation.first_object, generation.length // generation.constraints.slots):
        if generation.sampling.may_end and bool(generation.ended_B1.all()):
            break
        generation.generate_object(number)
        yield number


def finish_generation(generation: Generation) -> Generated:
    """The whole sentences."""
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
    """Sentences of at most this many objects.

    Where sentences may end, the device is asked once an object whether all have.

    Args:
        decoder: in evaluation mode.
        memory: what it looks at.
        constraints: its language.
        objects: how many, given ones included.
        sampling: how to choose.
        given_BL: the first tokens of each sentence, whole objects, and -1 behind the last of a row.

    Raises:
        UserError: for settings that cannot be.
    """
    return finish_generation(begin_generation(decoder, memory, constraints, objects, sampling, given_BL))

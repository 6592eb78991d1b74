"""A decoder that copies from random proposals, none of its parts at its neutral beginning."""

from typing import Any

import torch
from torch import nn

from boxwright.models.sequence.patch_vocabulary import PatchVocabulary
from boxwright.models.sequence.proposal_decoder import ProposalDecoder
from boxwright.models.sequence.proposals import Proposals
from boxwright.models.sequence.token_constraints import TokenConstraints
from boxwright.models.sequence.vocabulary import Vocabulary

CLASSES, WIDTH = 3, 24
SIDES, PATCHES = Vocabulary(12, 104, 120), PatchVocabulary(CLASSES, height=32, width=48, patch=16, fine=4)


def constraints(vocabulary: Any) -> TokenConstraints:
    return vocabulary.token_constraints(CLASSES if vocabulary is SIDES else True)


def stir(module: nn.Module) -> None:
    """Add noise to all parameters: layers that begin with zeros would hide what they are given."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += torch.randn(parameter.shape, generator=generator) * 0.2


def copying_decoder() -> ProposalDecoder:
    torch.manual_seed(0)
    decoder = ProposalDecoder(CLASSES, layers=2, dim=WIDTH, hidden=48, heads=3, dropout=0.1, drop_path=0.1).eval()
    stir(decoder)
    return decoder


def random_proposals(vocabulary: Any, images: int = 3, count: int = 7) -> Proposals:
    generator = torch.Generator().manual_seed(1)
    boxes_BC22 = torch.rand(images, count, 2, 2, generator=generator).sort(2).values
    return Proposals(
        torch.randn(images, count, WIDTH, generator=generator),
        boxes_BC22.flatten(2),
        torch.rand(images, count, 4, generator=generator) * 0.1 + 0.01,
        torch.randn(images, count, CLASSES, generator=generator),
        vocabulary,
    )

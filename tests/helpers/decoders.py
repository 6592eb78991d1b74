"""Decoders of sequences: one with clear choices, and one whose scores are random."""

import torch

from boxwright.models.layers.kv_cache import KeysValues, KVCache
from boxwright.models.sequence.decoder import SequenceDecoder
from boxwright.models.sequence.vocabulary import Vocabulary

BOXES = Vocabulary(12, 104, 120).token_constraints(3)  # 12 coordinates, 3 classes and noise


def clear_decoder(tokens: int, length: int = 40) -> SequenceDecoder:
    decoder = SequenceDecoder(
        tokens, length, slots=5, layers=2, dim=24, hidden=48, heads=3, dropout=0.1, drop_path=0.1
    ).eval()
    for table in (decoder.token_embedding, decoder.position_embedding):
        torch.nn.init.normal_(table, std=0.5)  # so that the choices are clear
    return decoder


class Babbler:
    """Logits are a function of seed, row and position; memory says how many rows there are."""

    def __init__(self, tokens: int, seed: int, scale: float):
        self.tokens, self.seed, self.scale = tokens, seed, scale

    def start(self, memory, length, per_image=1, /):
        image = KeysValues(torch.zeros(memory, 1, 1, 1), torch.zeros(memory, 1, 1, 1))
        return KVCache.empty([image], length, per_image)

    def step(self, tokens_BL, positions_L, cache, slot, /):
        generator = torch.Generator().manual_seed(self.seed * 1000 + int(positions_L[-1]))
        return torch.randn(len(tokens_BL), self.tokens, generator=generator) * self.scale

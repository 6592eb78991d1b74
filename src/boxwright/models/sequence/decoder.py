"""The autoregressive decoder: after each token it scores all tokens of the vocabulary for the next place.

Training passes whole sequences at once (`SequenceDecoder.forward`); generation passes one token after the other
(`SequenceDecoder.step`) and keeps the keys and values of every layer in a cache. Both give the same logits.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from boxwright.models.layers.attention import DecoderBlock, norm
from boxwright.models.layers.kv_cache import KeysValues, KVCache
from boxwright.models.layers.position_encoding import sincos, spread


class SequenceDecoder(nn.Module):
    """A transformer decoder; by default with learned positions and one table for reading and scoring tokens.

    Args:
        tokens: ids in the vocabulary.
        length: the longest sentence.
        slots: tokens of an object.
        layers: number of blocks.
        dim, hidden, heads, dropout, drop_path: of each block.
        learned_positions: else places are sines and cosines.
        shared: one table reads and scores tokens; else each task has its own.
        output_bias: each token's score has a bias.
    """

    def __init__(
        self,
        tokens: int,
        length: int,
        slots: int,
        layers: int,
        dim: int,
        hidden: int,
        heads: int,
        dropout: float,
        drop_path: float,
        learned_positions: bool = True,
        shared: bool = True,
        output_bias: bool = True,
    ):
        super().__init__()
        self.token_embedding = nn.Parameter(table(tokens, dim))
        self.output_embedding = None if shared else nn.Parameter(table(tokens, dim))
        if learned_positions:
            self.position_embedding = nn.Parameter(positions(length, slots, dim))
        else:
            self.register_buffer("position_embedding", sincos(spread(length), dim), persistent=False)
        self.layers = nn.ModuleList(DecoderBlock(dim, hidden, heads, dropout, drop_path) for _ in range(layers))
        self.norm = norm(dim)
        self.output_bias = nn.Parameter(torch.zeros(tokens)) if output_bias else None

    def forward(self, tokens_BL: Tensor, memory_BME: Tensor) -> Tensor:
        """Scores (B, L, V) of what follows each token of given sentences.

        Args:
            tokens_BL: several consecutive rows may belong to one image.
            memory_BME: the encoded images.
        """
        x_BLE = self.token_embedding[tokens_BL] + self.position_embedding[: tokens_BL.shape[1]]
        for layer, image in zip(self.layers, self._image(memory_BME), strict=True):
            x_BLE = layer(x_BLE, image)
        return self._scores(x_BLE)

    def start(self, memory_BME: Tensor, length: int, each: int = 1) -> KVCache:
        """An empty cache for `each` sentences an image, of at most this length."""
        return KVCache.empty(self._image(memory_BME), length, each)

    def step(self, tokens_BL: Tensor, positions_L: Tensor, cache: KVCache) -> Tensor:
        """Scores (B, V) of what follows the last of these tokens, which stand at these positions of their sentences.

        They are added to the cache, in place. Nothing here depends on the positions but values.
        """
        x_BLE = self.token_embedding[tokens_BL] + self.position_embedding[positions_L]
        place = cache.place(positions_L)
        for layer, sentence, image in zip(self.layers, cache.sentence, cache.image, strict=True):
            x_BLE = layer(x_BLE, image, sentence, place)
        return self._scores(x_BLE[:, -1])

    def _image(self, memory_BME: Tensor) -> Iterator[KeysValues]:
        """The image's keys and values for each layer."""
        return (layer.cross_attention.keys_values(memory_BME) for layer in self.layers)  # type: ignore[union-attr,operator]

    def _scores(self, x: Tensor) -> Tensor:
        table = self.token_embedding if self.output_embedding is None else self.output_embedding
        return F.linear(self.norm(x), table, self.output_bias).float()


def positions(length: int, slots: int, dim: int) -> Tensor:
    """Initial values of the position table: a vector of the slot plus a vector of the object.

    Rows drawn one by one, as published, must each find out what their slot is.
    """
    place = torch.arange(length)
    return table(slots, dim)[place % slots] + table(length // slots + 1, dim)[place // slots]


def table(rows: int, dim: int) -> Tensor:
    """Initial values of an embedding table: normal with deviation 0.1, cut at two deviations.

    Five times the published 0.02, with which training from scratch on few images begins too slowly.
    """
    return nn.init.trunc_normal_(torch.empty(rows, dim), std=0.1, a=-0.2, b=0.2)

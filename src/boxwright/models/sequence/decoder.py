"""The autoregressive decoder: after each token, the logits of all tokens of the vocabulary for the next position.

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
    """A transformer decoder; by default with learned positions, and one table for input and output tokens.

    Args:
        tokens: size of the vocabulary.
        length: the most tokens in a sequence.
        slots: tokens of an object.
        layers: number of blocks.
        dim, hidden, heads, dropout, drop_path: of each block.
        learned_positions: else positions are sines and cosines.
        shared: one table of embeddings for input and output; else each has its own.
        output_bias: each token's logit has a bias.
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
        """Logits (B, L, V) of what follows each token of whole sequences.

        Args:
            tokens_BL: consecutive rows may belong to one image.
            memory_BME: the encoded images.
        """
        x_BLE = self.token_embedding[tokens_BL] + self.position_embedding[: tokens_BL.shape[1]]
        for layer, image in zip(self.layers, self._image(memory_BME), strict=True):
            x_BLE = layer(x_BLE, image)
        return self._logits(x_BLE)

    def start(self, memory_BME: Tensor, length: int, per_image: int = 1) -> KVCache:
        """See `boxwright.models.sequence.generation.StepDecoder`."""
        return KVCache.empty(self._image(memory_BME), length, per_image)

    def step(self, tokens_BL: Tensor, positions_L: Tensor, cache: KVCache, slot: int = 0) -> Tensor:
        """See `boxwright.models.sequence.generation.StepDecoder`. Shapes do not depend on the positions."""
        x_BLE = self.token_embedding[tokens_BL] + self.position_embedding[positions_L]
        step = cache.step_positions(positions_L)
        for layer, sequence, image in zip(self.layers, cache.sequence, cache.image, strict=True):
            x_BLE = layer(x_BLE, image, sequence, step)
        return self._logits(x_BLE[:, -1])

    def _image(self, memory_BME: Tensor) -> Iterator[KeysValues]:
        """Keys and values of the images for each layer."""
        return (layer.cross_attention.keys_values(memory_BME) for layer in self.layers)  # type: ignore[union-attr,operator]

    def _logits(self, x: Tensor) -> Tensor:
        table = self.token_embedding if self.output_embedding is None else self.output_embedding
        return F.linear(self.norm(x), table, self.output_bias).float()


def positions(length: int, slots: int, dim: int) -> Tensor:
    """Initial values of the table of positions: a vector of the slot plus a vector of the object.

    Independent rows, as published, would each have to learn which slot they are.
    """
    index = torch.arange(length)
    return table(slots, dim)[index % slots] + table(length // slots + 1, dim)[index // slots]


def lengthened(table_LE: Tensor, slots: int, objects: int, more: int) -> nn.Parameter:
    """A table of positions with room for more objects, which get the positions of the last one in it.

    Args:
        table_LE: the table.
        slots: tokens of an object.
        objects: how many the table has room for; what follows stays at its end.
        more: how many to add.
    """
    before_LE, after_LE = table_LE[: slots * objects], table_LE[slots * objects :]
    return nn.Parameter(torch.cat([before_LE, before_LE[-slots:].repeat(more, 1), after_LE]).detach())


def table(rows: int, dim: int) -> Tensor:
    """Initial values of an embedding table: normal with standard deviation 0.1, truncated at two of them.

    Five times the published 0.02, with which training from scratch on few images starts too slowly.
    """
    return nn.init.trunc_normal_(torch.empty(rows, dim), std=0.1, a=-0.2, b=0.2)

"""Transformer blocks of the sentence writers: pre-norm, exact GELU, layer norm with eps 1e-6.

The parts are those of google-research/pix2seq (architectures/transformers.py), so that its weights fit: separate query,
key, value and output projections, all with biases; dropout only inside the MLP; one drop-path rate for all layers.
"""

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from boxwright.models.layers.kv_cache import KeysValues, StepPositions


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017) in two halves, so that a decoder can keep keys and values.

    Args:
        dim: width of what asks, of what is looked at, and of the answer.
        heads: each is dim / heads wide, rounded down, so that heads which don't divide `dim` leave something out.
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        assert 0 < heads <= dim, f"{dim} can't be split into {heads} heads"
        self.heads = heads
        inner = dim // heads * heads
        self.query, self.key, self.value = (dense(dim, inner) for _ in range(3))
        self.output = dense(inner, dim)

    def keys_values(self, source_BME: Tensor, values_BME: Tensor | None = None) -> KeysValues:
        """Keys and values of what can be looked at; DETR's kind makes values of something else, without positions."""
        values_BME = source_BME if values_BME is None else values_BME
        return KeysValues(self._split(self.key(source_BME)), self._split(self.value(values_BME)))

    def forward(self, x_BLE: Tensor, seen: KeysValues, causal: bool = False, mask: Tensor | None = None) -> Tensor:
        """(B, L, E): what each position gathers; `causal` hides all later positions, `mask` what it has False for."""
        queries_BHLE = self._split(self.query(x_BLE))
        mixed_BHLE = F.scaled_dot_product_attention(
            queries_BHLE, seen.keys_BHLE, seen.values_BHLE, attn_mask=mask, is_causal=causal
        )
        return self.output(mixed_BHLE.transpose(1, 2).flatten(2))

    def weights(self, x_BLE: Tensor, seen: KeysValues, mask: Tensor | None = None) -> Tensor:
        """(B, heads, L, M): the share that each position gathers from each thing seen, all 1 in sum. Only to look at:
        `forward` never holds them.
        """
        queries_BHLE = self._split(self.query(x_BLE))
        scores_BHLM = queries_BHLE @ seen.keys_BHLE.mT / queries_BHLE.shape[-1] ** 0.5
        return (scores_BHLM if mask is None else scores_BHLM.masked_fill(~mask, -torch.inf)).softmax(-1)

    def _split(self, x_BLE: Tensor) -> Tensor:
        return x_BLE.view(*x_BLE.shape[:2], self.heads, -1).transpose(1, 2)


class Mlp(nn.Module):
    """x + drop-path(dense(dropout(gelu(dense(norm(x)))))).

    Args:
        dim: width.
        hidden: width in between.
        dropout: rate in between.
        drop_path: rate at which the whole addition is left out of a row.
    """

    def __init__(self, dim: int, hidden: int, dropout: float, drop_path: float):
        super().__init__()
        self.norm = norm(dim)
        self.widen, self.narrow = dense(dim, hidden), dense(hidden, dim)
        self.dropout, self.drop_path = nn.Dropout(dropout), DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as given."""
        return x + self.drop_path(self.narrow(self.dropout(F.gelu(self.widen(self.norm(x))))))


class EncoderBlock(nn.Module):
    """Self-attention over all cells of the image, then an MLP."""

    def __init__(self, dim: int, hidden: int, heads: int, dropout: float, drop_path: float):
        super().__init__()
        self.self_norm, self.self_attention = norm(dim), Attention(dim, heads)
        self.drop_path = DropPath(drop_path)
        self.mlp = Mlp(dim, hidden, dropout, drop_path)

    def forward(self, x_BME: Tensor) -> Tensor:
        """Same shape as given."""
        normed_BME = self.self_norm(x_BME)
        attended_BME = self.self_attention(normed_BME, self.self_attention.keys_values(normed_BME))
        return self.mlp(x_BME + self.drop_path(attended_BME))


class DecoderBlock(nn.Module):
    """Self-attention over what is written so far, attention to the image, then an MLP."""

    def __init__(self, dim: int, hidden: int, heads: int, dropout: float, drop_path: float):
        super().__init__()
        self.self_norm, self.self_attention = norm(dim), Attention(dim, heads)
        self.cross_norm, self.cross_attention = norm(dim), Attention(dim, heads)
        self.drop_path = DropPath(drop_path)
        self.mlp = Mlp(dim, hidden, dropout, drop_path)

    def forward(
        self, x_BLE: Tensor, image: KeysValues, cache: KeysValues | None = None, place: StepPositions | None = None
    ) -> Tensor:
        """The next layer's view of the words.

        Args:
            x_BLE: words, either the whole sentence or those at `place`.
            image: `cross_attention.keys_values(memory)`; one image may serve several consecutive rows of x.
            cache: what is written so far, to which these words are added; None if x is the whole sentence.
            place: where x stands in the sentence; None if x is the whole sentence.
        """
        normed_BLE = self.self_norm(x_BLE)
        seen = self.self_attention.keys_values(normed_BLE)
        if cache is None or place is None:
            attended_BLE = self.self_attention(normed_BLE, seen, causal=True)
        else:
            cache.write(place.positions_L, seen)
            attended_BLE = self.self_attention(normed_BLE, cache, mask=place.hidden_LR)
        x_BLE = x_BLE + self.drop_path(attended_BLE)
        return self.mlp(x_BLE + self.drop_path(self._look_at_image(self.cross_norm(x_BLE), image)))

    def _look_at_image(self, x_BLE: Tensor, image: KeysValues) -> Tensor:
        """Sentences of one image ask side by side, as one long row: its keys and values are used as they are."""
        images = image.keys_BHLE.shape[0]
        return self.cross_attention(x_BLE.reshape(images, -1, x_BLE.shape[-1]), image).view_as(x_BLE)


def norm(dim: int) -> nn.LayerNorm:
    """The layer norm of this family."""
    return nn.LayerNorm(dim, eps=1e-6)


def dense(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that starts as Keras starts it: Glorot-uniform weights, zero biases."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer

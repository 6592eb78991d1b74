"""Transformer blocks of sequence detectors: pre-norm, exact GELU, layer norm with eps 1e-6.

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
        dim: width of queries, sources and outputs.
        heads: each is dim / heads wide, rounded down; where heads don't divide `dim`, the inner width is smaller.
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        assert 0 < heads <= dim, f"{dim} can't be split into {heads} heads"
        self.heads = heads
        inner = dim // heads * heads
        self.query, self.key, self.value = (dense(dim, inner) for _ in range(3))
        self.output = dense(inner, dim)

    def keys_values(self, source_BME: Tensor, values_BME: Tensor | None = None) -> KeysValues:
        """Keys and values of a source; in DETR values come from `values_BME`, the source without positions."""
        values_BME = source_BME if values_BME is None else values_BME
        return KeysValues(self._split(self.key(source_BME)), self._split(self.value(values_BME)))

    def queries(self, x_BLE: Tensor) -> Tensor:
        """Queries of each head, (B, H, L, E)."""
        return self._split(self.query(x_BLE))

    def forward(
        self, x_BLE: Tensor, keys_values: KeysValues, causal: bool = False, mask: Tensor | None = None
    ) -> Tensor:
        """Attention output, (B, L, E); `causal` masks all later positions, `mask` is False where not to attend."""
        queries_BHLE = self.queries(x_BLE)
        mixed_BHLE = F.scaled_dot_product_attention(
            queries_BHLE, keys_values.keys_BHLE, keys_values.values_BHLE, attn_mask=mask, is_causal=causal
        )
        return self.output(mixed_BHLE.transpose(1, 2).flatten(2))

    def weights(self, x_BLE: Tensor, keys_values: KeysValues, mask: Tensor | None = None) -> Tensor:
        """Attention weights, (B, heads, L, M), which sum to 1; only for explanation, `forward` never holds them."""
        queries_BHLE = self.queries(x_BLE)
        scores_BHLM = queries_BHLE @ keys_values.keys_BHLE.mT / queries_BHLE.shape[-1] ** 0.5
        return (scores_BHLM if mask is None else scores_BHLM.masked_fill(~mask, -torch.inf)).softmax(-1)

    def _split(self, x_BLE: Tensor) -> Tensor:
        return x_BLE.view(*x_BLE.shape[:2], self.heads, -1).transpose(1, 2)


class Mlp(nn.Module):
    """x + drop-path(dense(dropout(gelu(dense(norm(x)))))).

    Args:
        dim: width.
        hidden: width of the hidden layer.
        dropout: rate after the hidden layer.
        drop_path: rate of stochastic depth, row by row.
    """

    def __init__(self, dim: int, hidden: int, dropout: float, drop_path: float):
        super().__init__()
        self.norm = norm(dim)
        self.widen, self.narrow = dense(dim, hidden), dense(hidden, dim)
        self.dropout, self.drop_path = nn.Dropout(dropout), DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as the input."""
        return x + self.drop_path(self.narrow(self.dropout(F.gelu(self.widen(self.norm(x))))))


class EncoderBlock(nn.Module):
    """Self-attention over all cells of the image, then an MLP."""

    def __init__(self, dim: int, hidden: int, heads: int, dropout: float, drop_path: float):
        super().__init__()
        self.self_norm, self.self_attention = norm(dim), Attention(dim, heads)
        self.drop_path = DropPath(drop_path)
        self.mlp = Mlp(dim, hidden, dropout, drop_path)

    def forward(self, x_BME: Tensor) -> Tensor:
        """Same shape as the input."""
        normed_BME = self.self_norm(x_BME)
        attended_BME = self.self_attention(normed_BME, self.self_attention.keys_values(normed_BME))
        return self.mlp(x_BME + self.drop_path(attended_BME))


class DecoderBlock(nn.Module):
    """Causal self-attention over the tokens, cross-attention to the image, then an MLP."""

    def __init__(self, dim: int, hidden: int, heads: int, dropout: float, drop_path: float):
        super().__init__()
        self.self_norm, self.self_attention = norm(dim), Attention(dim, heads)
        self.cross_norm, self.cross_attention = norm(dim), Attention(dim, heads)
        self.drop_path = DropPath(drop_path)
        self.mlp = Mlp(dim, hidden, dropout, drop_path)

    def forward(
        self, x_BLE: Tensor, image: KeysValues, cache: KeysValues | None = None, step: StepPositions | None = None
    ) -> Tensor:
        """States of the tokens after this layer.

        Args:
            x_BLE: states of the tokens, either of whole sequences or of those of a step.
            image: `cross_attention.keys_values(memory)`; several consecutive rows of x may share an image.
            cache: keys and values of the tokens so far, to which these are added; None if x is the whole sequence.
            step: positions of x in the sequence; None if x is the whole sequence.
        """
        normed_BLE = self.self_norm(x_BLE)
        keys_values = self.self_attention.keys_values(normed_BLE)
        if cache is None or step is None:
            attended_BLE = self.self_attention(normed_BLE, keys_values, causal=True)
        else:
            cache.write(step.positions_L, keys_values)
            attended_BLE = self.self_attention(normed_BLE, cache, mask=step.mask_LR)
        x_BLE = x_BLE + self.drop_path(attended_BLE)
        return self.mlp(x_BLE + self.drop_path(self._attend_image(self.cross_norm(x_BLE), image)))

    def _attend_image(self, x_BLE: Tensor, image: KeysValues) -> Tensor:
        """Cross-attention; sequences of one image are one long row of queries, so that its keys are not copied."""
        images = image.keys_BHLE.shape[0]
        return self.cross_attention(x_BLE.reshape(images, -1, x_BLE.shape[-1]), image).view_as(x_BLE)


def norm(dim: int) -> nn.LayerNorm:
    """Layer norm with eps 1e-6, as in google-research/pix2seq."""
    return nn.LayerNorm(dim, eps=1e-6)


def dense(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer initialised as in Keras: Glorot-uniform weights, zero biases."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer

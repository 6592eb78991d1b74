"""Keys and values that a decoder keeps while it generates a sequence, in buffers that are allocated once.

Positions are tensors, and shapes depend on nothing but the bucket, so that a step can be compiled, or captured as a
CUDA graph and replayed. Attention runs over a whole bucket; a mask hides the positions that are not yet filled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor


class KeysValues(NamedTuple):
    """Keys and values of attention, (B, heads, length, width of a head) each."""

    keys_BHLE: Tensor
    values_BHLE: Tensor

    def buffers(self, rows: int, length: int) -> KeysValues:
        """Zeros for `rows` sequences of this length; not uninitialised memory, as NaN times a weight of 0 is NaN."""
        shape = (rows, self.keys_BHLE.shape[1], length, self.keys_BHLE.shape[3])
        return KeysValues(self.keys_BHLE.new_zeros(shape), self.values_BHLE.new_zeros(shape))

    def write(self, positions_L: Tensor, new: KeysValues) -> None:
        """Write at these positions, in place."""
        self.keys_BHLE.index_copy_(2, positions_L, new.keys_BHLE)
        self.values_BHLE.index_copy_(2, positions_L, new.values_BHLE)

    def causal_mask(self, positions_L: Tensor) -> Tensor | None:
        """`StepPositions.mask_LR` of tokens at these positions, which attend to themselves and all before them."""
        later_LR = torch.arange(self.keys_BHLE.shape[2], device=self.keys_BHLE.device) > positions_L[:, None]
        nothing_LR = torch.zeros_like(later_LR, dtype=self.keys_BHLE.dtype)
        return nothing_LR.masked_fill(later_LR, -torch.inf)

    def first(self, length: int) -> KeysValues:
        """A view of the first positions."""
        return KeysValues(self.keys_BHLE[:, :, :length], self.values_BHLE[:, :, :length])


class StepPositions(NamedTuple):
    """Positions of a step's tokens in their sequence, and what they attend to in it.

    Attributes:
        positions_L: int64, the same in all rows.
        mask_LR: added to attention's scores at each of the cache's R positions: 0, or -inf to hide it. None hides none.
    """

    positions_L: Tensor
    mask_LR: Tensor | None


class CacheTensor(NamedTuple):
    """One tensor of a cache, as an exported graph passes it on.

    Attributes:
        name: in the graph.
        tensor: the value.
        axes: what each axis counts, in the letters of shape suffixes; H are heads, M encoded cells, L tokens.
        changes: a step changes it; else it stays the same for all tokens of an image.
    """

    name: str
    tensor: Tensor
    axes: str
    changes: bool


@dataclass(frozen=True)
class KVCache:
    """Keys and values of a decoder's layers.

    Attributes:
        sequence: for each layer, buffers for whole sequences; consecutive rows may belong to one image.
        image: for each layer, the keys and values of the encoded images.
        valid_B11M: False for cells of the images that must not be attended to; None for no such cells.
    """

    sequence: list[KeysValues]
    image: list[KeysValues]
    valid_B11M: Tensor | None = None

    @classmethod
    def empty(
        cls, image: Iterable[KeysValues], length: int, per_image: int = 1, valid_B11M: Tensor | None = None
    ) -> KVCache:
        """For `per_image` sequences of at most this length for each image; `image` is consumed layer by layer."""
        packed = [KeysValues(*(tensor.contiguous() for tensor in kv)) for kv in image]  # a step reads all of them
        return cls([kv.buffers(per_image * kv.keys_BHLE.shape[0], length) for kv in packed], packed, valid_B11M)

    @property
    def rows(self) -> int:
        """Number of sequences."""
        return self.sequence[0].keys_BHLE.shape[0]

    def first(self, length: int) -> Self:
        """A view in which only the first positions are attended to and can be written."""
        return replace(self, sequence=[kv.first(length) for kv in self.sequence])

    def reorder(self, rows_B: Tensor) -> None:
        """Row i becomes what row `rows_B[i]` was, in place; rows stay with their image."""
        for entry in self.tensors():
            if entry.changes:
                entry.tensor.copy_(entry.tensor.index_select(0, rows_B))

    def step_positions(self, positions_L: Tensor) -> StepPositions:
        """Of tokens that attend to themselves and all before them."""
        return StepPositions(positions_L, self.sequence[0].causal_mask(positions_L))

    def tensors(self) -> list[CacheTensor]:
        """All of them, under fixed names."""
        valid = [] if self.valid_B11M is None else [CacheTensor("valid_cells", self.valid_B11M, "B11M", False)]
        return [
            *_named(self.sequence, "", "BHLE", changes=True),
            *_named(self.image, "image_", "BHME", changes=False),
            *valid,
        ]

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        """The same kind of cache, with other tensors under the names of `tensors()`."""
        return replace(
            self,
            sequence=_unnamed(tensors, "", len(self.sequence)),
            image=_unnamed(tensors, "image_", len(self.image)),
            valid_B11M=tensors.get("valid_cells"),
        )


def _named(layers: list[KeysValues], prefix: str, axes: str, changes: bool) -> list[CacheTensor]:
    return [
        CacheTensor(f"{prefix}{kind}_{layer}", tensor, axes, changes)
        for layer, kv in enumerate(layers)
        for kind, tensor in (("keys", kv.keys_BHLE), ("values", kv.values_BHLE))
    ]


def _unnamed(tensors: Mapping[str, Tensor], prefix: str, layers: int) -> list[KeysValues]:
    return [KeysValues(tensors[f"{prefix}keys_{n}"], tensors[f"{prefix}values_{n}"]) for n in range(layers)]

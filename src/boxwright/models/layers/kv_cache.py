"""What a decoder remembers while a sentence is written: room for all of it is taken at once, and never moved.

Positions are tensors and shapes depend on nothing but the bucket, so that a step can be compiled, or recorded once as
a CUDA graph and played again. Attention looks at a whole bucket, with the places not yet written hidden by a mask.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor


class KeysValues(NamedTuple):
    """What attention looks at, head by head: each (B, heads, length, width of a head)."""

    keys_BHLE: Tensor
    values_BHLE: Tensor

    def room(self, rows: int, length: int) -> KeysValues:
        """The like of these for `rows` sentences of this length: zeros, as garbage times a weight of 0 may not be 0."""
        shape = (rows, self.keys_BHLE.shape[1], length, self.keys_BHLE.shape[3])
        return KeysValues(self.keys_BHLE.new_zeros(shape), self.values_BHLE.new_zeros(shape))

    def write(self, positions_L: Tensor, new: KeysValues) -> None:
        """Write at these positions, in place."""
        self.keys_BHLE.index_copy_(2, positions_L, new.keys_BHLE)
        self.values_BHLE.index_copy_(2, positions_L, new.values_BHLE)

    def hidden(self, positions_L: Tensor) -> Tensor | None:
        """`StepPositions.hidden_LR` of tokens at these positions, which attend to themselves and all before them."""
        later_LR = torch.arange(self.keys_BHLE.shape[2], device=self.keys_BHLE.device) > positions_L[:, None]
        nothing_LR = torch.zeros_like(later_LR, dtype=self.keys_BHLE.dtype)
        return nothing_LR.masked_fill(later_LR, -torch.inf)

    def first(self, length: int) -> KeysValues:
        """The first places, sharing their memory."""
        return KeysValues(self.keys_BHLE[:, :, :length], self.values_BHLE[:, :, :length])


class StepPositions(NamedTuple):
    """Where in their sentence the tokens of a step stand, and what they see of it.

    Attributes:
        positions_L: int64, the same in all rows.
        hidden_LR: added to attention's scores: -inf where a token must not look, else 0; for each place of the cache.
            None if it may look at all of them.
    """

    positions_L: Tensor
    hidden_LR: Tensor | None


@dataclass(frozen=True)
class KVCache:
    """What a decoder has read and written.

    Attributes:
        sentence: for each layer, room for the keys and values of whole sentences; several consecutive ones may belong
            to one image.
        image: for each layer, the keys and values of the images.
        seen_B11M: which cells of each image may be looked at, bool; None for all.
    """

    sentence: list[KeysValues]
    image: list[KeysValues]
    seen_B11M: Tensor | None = None

    @classmethod
    def empty(cls, image: Iterable[KeysValues], length: int, each: int = 1, seen_B11M: Tensor | None = None) -> KVCache:
        """Room for `each` sentences an image, of at most this length; `image` is taken layer by layer."""
        packed = [KeysValues(*(tensor.contiguous() for tensor in kv)) for kv in image]  # a step reads all of them
        return cls([kv.room(each * kv.keys_BHLE.shape[0], length) for kv in packed], packed, seen_B11M)

    @property
    def rows(self) -> int:
        """Sentences being written."""
        return self.sentence[0].keys_BHLE.shape[0]

    def first(self, length: int) -> KVCache:
        """The same cache, where only the first places are looked at and can be written."""
        return replace(self, sentence=[kv.first(length) for kv in self.sentence])

    def reorder(self, rows_B: Tensor) -> None:
        """Row i becomes what row `rows_B[i]` was, in place; rows stay with their image."""
        for tensor in (t for kv in self.sentence for t in kv):
            tensor.copy_(tensor.index_select(0, rows_B))

    def place(self, positions_L: Tensor) -> StepPositions:
        """Tokens see themselves and all before them."""
        return StepPositions(positions_L, self.sentence[0].hidden(positions_L))

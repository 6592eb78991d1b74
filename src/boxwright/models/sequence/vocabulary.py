"""Token ids of boxes and classes.

    0        nothing: padding, and the end of the sequence
    10       the prompt "detect objects"
    30       noise: the class of an object that is none
    100+     classes: label 0 is never used, so the class at position p of the names is 101 + p, unless it has another
    1000+    coordinates, one id a bin
    3000     ids in all

This is the layout of google-research/pix2seq (vocab.py, configs/config_det_finetune.py); the labels of its published
weights are 1 to 90, COCO's category ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from boxwright.models.sequence.side_distributions import SideTables
from boxwright.models.sequence.token_constraints import TokenConstraints

PAD, PROMPT, NOISE, FIRST_CLASS = 0, 10, 30, 100


@dataclass(frozen=True)
class Vocabulary:
    """The ids of one detector, the same for all canvases.

    Attributes:
        bins: values of a coordinate.
        first_coordinate: id of the coordinate 0; ids from 100 to here are classes.
        size: number of ids.
        class_ids: the label of each class, from 1; empty for 1, 2, 3... COCO's have gaps.
    """

    bins: int = 1000
    first_coordinate: int = 1000
    size: int = 3000
    class_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        assert FIRST_CLASS < self.first_coordinate <= self.size - self.bins, f"{self} does not fit"
        assert self.bins > 1

    @property
    def slots(self) -> int:
        """Tokens of an object: four coordinates and a class."""
        return 5

    @property
    def max_classes(self) -> int:
        """How many classes have an id."""
        return self.first_coordinate - FIRST_CLASS - 1

    def quantise(self, values: Tensor) -> Tensor:
        """Bins, int64, of values in [0, 1]: round(value * (bins - 1)), half to even; values outside are clipped."""
        return (values * (self.bins - 1)).round().long().clamp(0, self.bins - 1)

    def dequantise(self, bins: Tensor) -> Tensor:
        """Values in [0, 1] of bins: bin / (bins - 1)."""
        return bins / (self.bins - 1)

    def coordinate_tokens(self, boxes_B4: Tensor) -> Tensor:
        """Ids y1, x1, y2, x2 of boxes xyxy in [0, 1]; shapes (..., 4)."""
        return self.quantise(boxes_B4[..., [1, 0, 3, 2]]) + self.first_coordinate

    def boxes(self, tokens_B4: Tensor) -> Tensor:
        """Boxes xyxy in [0, 1] of ids y1, x1, y2, x2; any other id becomes the nearest coordinate."""
        return self.dequantise(tokens_B4 - self.first_coordinate).clamp(0, 1)[..., [1, 0, 3, 2]]

    def class_tokens(self, positions: Tensor) -> Tensor:
        """Ids of class positions, of any shape."""
        if not self.class_ids:
            return positions + FIRST_CLASS + 1
        return torch.tensor(self.class_ids, device=positions.device)[positions] + FIRST_CLASS

    def edges(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """The edges of the bins along x and along y, in [0, 1] of the canvas, (bins + 1,) each."""
        edges_X = (torch.arange(self.bins + 1, device=device) - 0.5) / (self.bins - 1)
        return edges_X, edges_X

    def side_bins(self, tokens_B4: Tensor) -> Tensor:
        """Bins of the sides x1, y1, x2, y2 of ids y1, x1, y2, x2; any other id becomes the nearest coordinate."""
        return (tokens_B4[..., [1, 0, 3, 2]] - self.first_coordinate).clamp(0, self.bins - 1)

    def factors(self, slot: int, tables: SideTables, tokens_BNS: Tensor) -> tuple[Tensor, ...]:
        """The distribution of the coordinate of a slot in each of C boxes: one factor, (B, C, bins).

        Args:
            slot: 0 to 3.
            tables: of the boxes.
            tokens_BNS: the tokens before it in the object; sides do not depend on each other.
        """
        return ((tables.y1_BCY, tables.x1_BCX, tables.y2_BCY, tables.x2_BCX)[slot],)

    def first_of(self, slot: int) -> int:
        """The id of the first coordinate of a slot."""
        return self.first_coordinate

    def token_constraints(
        self, classes: int, only: Sequence[int] | None = None, free: bool = False, device: torch.device | str = "cpu"
    ) -> TokenConstraints:
        """Coordinates in the first four slots of an object, y2 >= y1 and x2 >= x1; a class or noise in the last.

        Args:
            classes: how many there are.
            only: positions of the classes that may be generated, by default all.
            free: any token may stand anywhere, as in the published code.
            device: of the tables.
        """
        ids_V = torch.arange(self.size, device=device)
        coordinate_V = (ids_V >= self.first_coordinate) & (ids_V < self.first_coordinate + self.bins)
        class_tokens_K = self.class_tokens(torch.arange(classes, device=device))
        named_V = ids_V == NOISE
        named_V[class_tokens_K if only is None else class_tokens_K[list(only)]] = True
        allowed_SV = torch.stack([coordinate_V] * 4 + [named_V]) | free
        at_least = () if free else (None, None, 0, 1, None)
        return TokenConstraints(PROMPT, PAD, allowed_SV, class_tokens_K, at_least=at_least)

"""Token ids of boxes whose corners are patches of the image.

    0        nothing: padding, and the end of the sequence
    10       the prompt "detect objects"
    30       noise: the class of an object that is none
    101+     classes: the class at position p of the names is 101 + p
    then     offsets: where in its patch a corner lies, one id per subcell, row by row; none without offsets
    then     patches, one id each, row by row; their number depends on the canvas

Up to the classes this is the layout of `boxwright.models.sequence.vocabulary`, so that both share
`boxwright.models.sequence.targets`. Patches come last because their number follows from the size of the canvas.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from boxwright.models.sequence.side_distributions import SideTables
from boxwright.models.sequence.token_constraints import TokenConstraints
from boxwright.models.sequence.vocabulary import FIRST_CLASS, NOISE, PAD, PROMPT

ROUNDING = 1e-4  # of a patch: a corner this close to a line lies on it


@dataclass(frozen=True)
class PatchVocabulary:
    """The ids for one canvas.

    Attributes:
        classes: number of classes.
        height, width: of the canvas, in pixels.
        patch: its side, in pixels; those at the bottom and right edge may stick out of the canvas.
        fine: subcells along a side of a patch; 0 encodes a corner by its patch alone, without an offset.
    """

    classes: int
    height: int
    width: int
    patch: int
    fine: int

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return -(-self.height // self.patch), -(-self.width // self.patch)

    @property
    def slots(self) -> int:
        """Tokens of an object: two corners and a class."""
        return 5 if self.fine else 3

    def corners(self, noise: bool) -> tuple[int, int]:
        """The slots of an object's two patches, behind its class unless that comes last (`noise`)."""
        first = 0 if noise else 1
        return first, first + (2 if self.fine else 1)

    @property
    def first_coordinate(self) -> int:
        """The id behind the classes."""
        return FIRST_CLASS + 1 + self.classes

    @property
    def first_patch(self) -> int:
        """The id of the patch in the upper left corner."""
        return self.first_coordinate + self.fine**2

    @property
    def size(self) -> int:
        """Number of ids."""
        return self.first_patch + self.grid[0] * self.grid[1]

    def class_tokens(self, positions: Tensor) -> Tensor:
        """Ids of class positions, of any shape."""
        return positions + FIRST_CLASS + 1

    def coordinate_tokens(self, boxes_B4: Tensor) -> Tensor:
        """Ids of the upper left and the lower right corner of boxes xyxy in [0, 1]; (..., 2), or (..., 4) with offsets.

        A corner on the line between two patches belongs to the one that the box covers, on the edge of the canvas to
        the last one; outside it to the nearest.
        """
        corners_B22 = boxes_B4.unflatten(-1, (2, 2)) / self._unit(boxes_B4)  # upper left and lower right; x and y
        cells_B22 = self._split(corners_B22, boxes_B4.new_tensor(self.grid[::-1]))
        cells_B22[..., 1, :] = torch.maximum(cells_B22[..., 0, :], cells_B22[..., 1, :])  # of an empty box on a line
        ids_B2 = (cells_B22[..., 1] * self.grid[1] + cells_B22[..., 0]).long() + self.first_patch
        if not self.fine:
            return ids_B2
        subcells_B22 = self._split((corners_B22 - cells_B22) * self.fine, boxes_B4.new_tensor([self.fine, self.fine]))
        offsets_B2 = (subcells_B22[..., 1] * self.fine + subcells_B22[..., 0]).long() + self.first_coordinate
        return torch.stack([ids_B2, offsets_B2], -1).flatten(-2)

    def boxes(self, tokens_B: Tensor) -> Tensor:
        """Boxes xyxy in [0, 1] of the ids of their corners, (..., 2) or with offsets (..., 4).

        Without offsets a box covers both patches whole, as in the published code; with them, a corner lies in the
        middle of its subcell.
        """
        ids_B2 = (tokens_B[..., ::2] if self.fine else tokens_B) - self.first_patch
        cells_B22 = self._at(ids_B2.clamp(0, self.grid[0] * self.grid[1] - 1), self.grid[1])
        if self.fine:
            offsets_B2 = (tokens_B[..., 1::2] - self.first_coordinate).clamp(0, self.fine**2 - 1)
            cells_B22 = cells_B22 + (self._at(offsets_B2, self.fine) + 0.5) / self.fine
        else:
            cells_B22 = cells_B22 + cells_B22.new_tensor([[0], [1]])
        return (cells_B22 * self._unit(cells_B22)).clamp(0, 1).flatten(-2)

    def edges(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """The edges of the subcells along x and along y, in [0, 1] of the canvas."""
        (rows, columns), step = self.grid, self.patch / self.fine
        x_X, y_Y = (torch.arange(count * self.fine + 1, device=device) for count in (columns, rows))
        return x_X * (step / self.width), y_Y * (step / self.height)

    def side_bins(self, tokens_B4: Tensor) -> Tensor:
        """Subcells, counted from the edge of the canvas, of the sides x1, y1, x2, y2 of a patch, an offset, twice."""
        cells_B22 = self._at(
            (tokens_B4[..., ::2] - self.first_patch).clamp(0, self.size - self.first_patch - 1), self.grid[1]
        )
        offsets_B22 = self._at((tokens_B4[..., 1::2] - self.first_coordinate).clamp(0, self.fine**2 - 1), self.fine)
        return (cells_B22 * self.fine + offsets_B22).flatten(-2)

    def factors(self, slot: int, tables: SideTables, tokens_BNS: Tensor) -> tuple[Tensor, ...]:
        """The distribution of the token of a slot in each of C boxes: its rows and its columns; (B, C, count) each for
        a patch, (B, N, C, count) for an offset.

        Args:
            slot: 0 to 3: a patch, its offset, the second patch, its offset.
            tables: of the boxes.
            tokens_BNS: the tokens before it in the object.
        """
        x_BCX, y_BCY = (tables.x1_BCX, tables.y1_BCY) if slot < 2 else (tables.x2_BCX, tables.y2_BCY)
        rows_BCRF, columns_BCQF = (table.unflatten(-1, (-1, self.fine)) for table in (y_BCY, x_BCX))
        if slot % 2 == 0:
            return rows_BCRF.sum(-1), columns_BCQF.sum(-1)
        patch_BN = (tokens_BNS[..., slot - 1] - self.first_patch).clamp(0, self.size - self.first_patch - 1)
        row_BN, column_BN = patch_BN // self.grid[1], patch_BN % self.grid[1]
        return _inside(rows_BCRF, row_BN), _inside(columns_BCQF, column_BN)

    def first_of(self, slot: int) -> int:
        """The id of the first patch or offset."""
        return self.first_coordinate if slot % 2 else self.first_patch

    def token_constraints(
        self, noise: bool, only: Sequence[int] | None = None, device: torch.device | str = "cpu"
    ) -> TokenConstraints:
        """Corners hold patches and offsets, the second neither above nor left of the first.

        Args:
            noise: the class comes last, and may be noise; else it comes first.
            only: positions of the classes that may be generated, by default all.
            device: of the tables.
        """
        ids_V = torch.arange(self.size, device=device)
        patch_V = ids_V >= self.first_patch
        offset_V = (ids_V >= self.first_coordinate) & ~patch_V
        class_tokens_K = self.class_tokens(torch.arange(self.classes, device=device))
        named_V = torch.zeros_like(patch_V)
        named_V[class_tokens_K if only is None else class_tokens_K[list(only)]] = True
        corner = [patch_V, offset_V] if self.fine else [patch_V]
        slots, (first, second) = [*corner, *corner], self.corners(noise)
        at_least: list[int | None] = [None] * self.slots
        at_least[second] = first
        if noise:
            named_V[NOISE] = True
        allowed_SV = torch.stack([*slots, named_V] if noise else [named_V, *slots])
        cells_V = (ids_V - self.first_patch).clamp(min=0)
        ranks_RV = torch.stack([cells_V // self.grid[1], cells_V % self.grid[1]])
        class_slot = self.slots - 1 if noise else 0
        return TokenConstraints(
            PROMPT, PAD, allowed_SV, class_tokens_K, self.slots, class_slot, tuple(at_least), ranks_RV
        )

    def _unit(self, like: Tensor) -> Tensor:
        """Width and height of a patch, as fractions of the canvas."""
        return like.new_tensor([self.patch / self.width, self.patch / self.height], dtype=torch.float)

    @staticmethod
    def _split(corners_B22: Tensor, count_2: Tensor) -> Tensor:
        """The cell of each corner, on the inside of its box, as whole numbers from 0 to `count_2` - 1."""
        first_B2, second_B2 = (
            (corners_B22[..., 0, :] + ROUNDING).floor(),
            (corners_B22[..., 1, :] - ROUNDING).ceil() - 1,
        )
        cells_B22 = torch.stack([first_B2, second_B2], -2)
        return torch.minimum(cells_B22.clamp(min=0), count_2 - 1)

    @staticmethod
    def _at(ids_B2: Tensor, columns: int) -> Tensor:
        """Columns and rows (x, y) of ids counted row by row, (..., 2, 2)."""
        return torch.stack([ids_B2 % columns, ids_B2 // columns], -1)


def _inside(table_BCRF: Tensor, row_BN: Tensor) -> Tensor:
    """The distribution over the subcells of a patch, given its row (or column), (B, N, C, F)."""
    index_BC = row_BN[:, None, :, None].expand(-1, table_BCRF.shape[1], -1, table_BCRF.shape[3])
    share_BNCF = table_BCRF.gather(2, index_BC).transpose(1, 2)
    return share_BNCF / share_BNCF.sum(-1, keepdim=True)

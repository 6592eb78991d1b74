"""A pointer network over patches: which patch of the image is the next token.

The logit of a patch is the match between the decoder's state and the patch's feature. Two things that a decoder would
need many images to learn are given to it: the distance of a patch from the last corner, as a window around a point that
the state predicts, since a second corner is found from the first; and which patches are corners already, with those
around them, since the best patch stays the best once it has been generated.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from boxwright.models.layers.attention import dense

WINDOW = 8.0  # patches: initial standard deviation of the window
FIRST, SECOND = 0, 1  # the corners of a box


class History(NamedTuple):
    """The patches in a sequence up to each token.

    Attributes:
        last_BL: the last patch, -1 before the first.
        corners_B2LP: 1 for patches that were the first, the second corner of a box.
    """

    last_BL: Tensor
    corners_B2LP: Tensor

    @classmethod
    def empty(cls, rows: int, patches: int, device: torch.device) -> "History":
        """Before the first token of sequences; L is 1."""
        last_BL = torch.full((rows, 1), -1, device=device)
        return cls(last_BL, torch.zeros(rows, 2, 1, patches, device=device))

    def then(self, patches_BL: Tensor, corner_L: Tensor) -> "History":
        """Up to each of these tokens, which follow.

        Args:
            patches_BL: the patch that a token is, -1 if it is none.
            corner_L: which corner stands at this position, FIRST or SECOND; anything where none does.
        """
        is_patch_BL = patches_BL >= 0
        index_L = torch.arange(patches_BL.shape[1], device=patches_BL.device)
        when_BL = torch.where(is_patch_BL, index_L, -1).cummax(1).values
        last_BL = torch.where(when_BL >= 0, patches_BL.gather(1, when_BL.clamp(min=0)), self.last_BL[:, -1:])
        new_BLP = F.one_hot(patches_BL.clamp(min=0), self.corners_B2LP.shape[-1]) * is_patch_BL[..., None]
        is_corner_2L1 = torch.stack([corner_L == FIRST, corner_L == SECOND])[..., None]
        corners_B2LP = (new_BLP[:, None] * is_corner_2L1).cumsum(2) + self.corners_B2LP[:, :, -1:]
        return History(last_BL, corners_B2LP.clamp(max=1))

    def now(self) -> "History":
        """After the last token; L is 1."""
        return History(self.last_BL[:, -1:], self.corners_B2LP[:, :, -1:])


class Pointer(nn.Module):
    """Logits of patches (`forward`), and their embeddings as tokens (`read`).

    Args:
        dim: width of the decoder and of the patches.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.read, self.ask, self.answer = (dense(dim, dim) for _ in range(3))
        self.look, self.again = nn.Linear(dim, 4), nn.Linear(dim, 3)
        for layer in (self.look, self.again):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.look.bias[2:] = -math.log(WINDOW)

    def forward(self, x_BLE: Tensor, keys_IPE: Tensor, history: History, grid: tuple[int, int]) -> Tensor:
        """Logits (B, L, P).

        Args:
            x_BLE: the decoder's states; consecutive rows may belong to one image.
            keys_IPE: `answer` of the patches of each image.
            history: up to each token.
            grid: rows and columns of patches.
        """
        queries_ILE = (self.ask(x_BLE) / x_BLE.shape[-1] ** 0.5).reshape(keys_IPE.shape[0], -1, x_BLE.shape[-1])
        match_BLP = (queries_ILE @ keys_IPE.mT).view(*x_BLE.shape[:2], -1)
        marks_B3LP = corner_marks(history.corners_B2LP, grid).to(x_BLE.dtype)
        again_BLP = torch.einsum("blk,bklp->blp", self.again(x_BLE), marks_B3LP)
        return match_BLP + again_BLP + self._window(x_BLE, history.last_BL, grid)

    def _window(self, x_BLE: Tensor, last_BL: Tensor, grid: tuple[int, int]) -> Tensor:
        """Log-density, but for a constant, of a Gaussian around an offset from the last patch, or else the middle."""
        rows, columns = grid
        index_P = torch.arange(rows * columns, device=x_BLE.device)
        cells_P2 = torch.stack([index_P // columns, index_P % columns], -1).to(x_BLE.dtype)
        middle_2 = cells_P2.new_tensor([(rows - 1) / 2, (columns - 1) / 2])
        from_BL2 = torch.where(last_BL[..., None] >= 0, cells_P2[last_BL.clamp(min=0)], middle_2)
        mean_BL2, narrow_BL2 = self.look(x_BLE).chunk(2, -1)
        away_BLP2 = (cells_P2 - (from_BL2 + mean_BL2)[:, :, None]) * narrow_BL2.exp()[:, :, None]
        return -0.5 * away_BLP2.square().sum(-1)


def corner_marks(corners_B2LP: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, 3, L, P): patches that were a first corner, these and the ones around them, patches that were a second."""
    first_BLP = corners_B2LP[:, FIRST]
    around_BLP = F.max_pool2d(first_BLP.float().reshape(-1, 1, *grid), 3, 1, 1).view(first_BLP.shape)
    return torch.stack([first_BLP.float(), around_BLP, corners_B2LP[:, SECOND].float()], 1)

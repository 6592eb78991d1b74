"""What detectors of DETR's kind have at their end: boxes and rows of classes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from boxwright.config import require


def box_head(dim: int) -> nn.Sequential:
    """Three layers from a query's state to centre and size before the sigmoid."""
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 4))


def rows_of(class_ids: Sequence[int], class_rows: int, names: Sequence[str]) -> Tensor:
    """The row of the head of each class, (K,).

    Args:
        class_ids: of a foreign head, the row of each class; empty for 0, 1, 2...
        class_rows: how many the head has for classes; 0 for one a name.
        names: the classes.

    Raises:
        UserError: if there is no row for one of them.
    """
    rows = class_ids or tuple(range(len(names)))
    count = class_rows or len(names)
    fits = len(rows) == len(names) and all(0 <= row < count for row in rows)
    require(fits, f"this detector has rows for {count} classes, not for {len(names)}.")
    return torch.tensor(rows, dtype=torch.long)


def begin_glorot(module: nn.Module) -> None:
    """Let all matrices inside begin Glorot-uniform, as in facebookresearch/detr; embeddings keep their normal draws."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)

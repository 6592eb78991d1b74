"""Heads of the DETR family: boxes, and the rows of classes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from boxwright.config import require


def box_head(dim: int) -> nn.Sequential:
    """A three-layer MLP from a query's state to centre and size before the sigmoid."""
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 4))


def head_rows(class_ids: Sequence[int], class_rows: int, names: Sequence[str]) -> Tensor:
    """The head's row of each class, (K,).

    Args:
        class_ids: the row of each class in an imported head; empty for 0, 1, 2...
        class_rows: rows of the head; 0 for one per name.
        names: the classes.

    Raises:
        UserError: for a class without a row.
    """
    rows = class_ids or tuple(range(len(names)))
    count = class_rows or len(names)
    fits = len(rows) == len(names) and all(0 <= row < count for row in rows)
    require(fits, f"this detector has rows for {count} classes, not for {len(names)}.")
    return torch.tensor(rows, dtype=torch.long)


def init_glorot(module: nn.Module) -> None:
    """Initialise all linear layers Glorot-uniform, as facebookresearch/detr does; embeddings stay as they are."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)

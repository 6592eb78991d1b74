"""Weights and ids of classes, taken over by a detector for other classes where the names are the same."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from boxwright.config import require


def shared_rows(names: Sequence[str], rows: Sequence[int], new_names: Sequence[str]) -> list[tuple[int, int]]:
    """(old row, new row) of each class that both detectors have.

    Args:
        names, rows: the old classes, and the row of each.
        new_names: the new classes, whose rows are their positions.
    """
    row_of_class = dict(zip(names, rows, strict=True))
    return [(row_of_class[name], new) for new, name in enumerate(new_names) if name in row_of_class]


def copy_weights(source: nn.Module, target: nn.Module, rows: Mapping[str, Sequence[tuple[int, int]]]) -> None:
    """Copy all parameters and buffers in place; of those named in `rows`, only these rows, as (old, new)."""
    state = target.state_dict()
    for key, value in source.state_dict().items():
        if key in rows:
            copy_rows(value, state[key], rows[key])
        else:
            state[key].copy_(value)


@torch.no_grad()
def copy_rows(old: Tensor, new: Tensor, rows: Sequence[tuple[int, int]]) -> None:
    """Copy rows in place, as (old, new)."""
    for old_row, new_row in rows:
        new[new_row] = old[old_row]


def choose_ids(names: Sequence[str], ids: Sequence[int], new_names: Sequence[str], known: range) -> tuple[int, ...]:
    """An id for each new class: its own if it has one, else one that no class has, else that of a class left out.

    Args:
        names, ids: the old classes, and the id of each; empty for the first of `known`.
        new_names: the new classes.
        known: all ids that the network can predict.

    Raises:
        UserError: for more classes than ids.
    """
    id_of_class = dict(zip(names, ids or known, strict=False))
    unused = [number for number in known if number not in id_of_class.values()]
    spare = iter([*unused, *(number for name, number in id_of_class.items() if name not in new_names)])
    fits = len(new_names) <= len(known)
    problem = f"these weights have tokens for {len(known)} classes, not for {len(new_names)}"
    require(fits, f"{problem}; train on fewer classes, or without --weights.")
    return tuple(id_of_class[name] if name in id_of_class else next(spare) for name in new_names)

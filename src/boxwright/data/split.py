"""A stratified validation split: each class has about the same share of its objects in it."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from boxwright.config import require
from boxwright.data.columns import take
from boxwright.data.records import Record
from boxwright.data.shards.records import ShardRecords
from boxwright.files import PackedFile

AT_RANDOM = 100_000


def split(records: Sequence[Record], fraction: float, seed: int = 0) -> tuple[Sequence[Record], Sequence[Record]]:
    """Divide images into two parts with about the same proportions of the classes.

    Iterative stratification (Sechidis et al. 2011, algorithm 1) by objects: the rarest class is distributed first, each
    image to the part that lacks the class most. The same records, in any order, and the same seed give the same parts,
    each in the order of `records`. Of over `AT_RANDOM` images in shards, the second part is drawn at random: of so
    many, that gives about the same proportions, too.

    Args:
        records: images; `ignore` objects do not count.
        fraction: share of the second part, more than 0 and less than 1.
        seed: of the random order of the images, which decides ties.

    Returns:
        The rest, and the part of exactly ``round(fraction * len(records))`` images, at least 1.

    Raises:
        UserError: the fraction is out of range, or there are fewer than two images.
    """
    require(0 < fraction < 1, f"a validation share of {fraction} is not between 0 and 1; give 0.2 for a fifth")
    require(len(records) >= 2, "one image cannot be split into training and validation; add images")
    n_val = min(max(round(fraction * len(records)), 1), len(records) - 1)
    in_val = np.zeros(len(records), dtype=bool)
    if isinstance(records, ShardRecords) and len(records) > AT_RANDOM:
        in_val[np.random.default_rng(seed).permutation(len(records))[:n_val]] = True
        return take(records, ~in_val), take(records, in_val)
    by_name = sorted(range(len(records)), key=lambda i: _order(records[i]))
    order = np.array(by_name)[np.random.default_rng(seed).permutation(len(records))]
    in_val[order] = _assign(_class_counts([records[i] for i in order]), n_val)
    return take(records, ~in_val), take(records, in_val)


def _order(record: Record) -> tuple[bytes, bool, int | str]:
    return (
        os.fsencode(record.path.path if isinstance(record.path, PackedFile) else record.path),
        isinstance(record.image_id, str),
        record.image_id,
    )


def _class_counts(records: Sequence[Record]) -> np.ndarray:
    """(images, classes + 1): objects of each class; the last column marks images without any."""
    n_classes = max((int(r.labels_N.max()) + 1 for r in records if len(r.labels_N)), default=0)
    rows = [np.bincount(r.labels_N[~r.ignore_N], minlength=n_classes) for r in records]
    counts = np.array(rows).reshape(len(records), n_classes)
    return np.column_stack([counts, counts.sum(1) == 0])


def _assign(counts: np.ndarray, n_val: int) -> np.ndarray:
    """(images,) bool: the images of the second part, given the counts (images, classes) of objects."""
    share = np.array([1 - n_val / len(counts), n_val / len(counts)])
    lack = counts.sum(0) * share[:, None]  # (2, classes + 1), objects that each part still lacks
    room = [len(counts) - n_val, n_val]
    in_val, waiting = np.zeros(len(counts), dtype=bool), np.ones(len(counts), dtype=bool)
    while waiting.any():
        left = counts[waiting].sum(0)
        rarest = int(np.where(left > 0, left, left.max() + 1).argmin())
        for i in np.flatnonzero(waiting & (counts[:, rarest] > 0)):
            part = int(lack[1, rarest] / share[1] > lack[0, rarest] / share[0]) if all(room) else int(room[1] > 0)
            in_val[i], waiting[i] = part, False
            lack[part] -= counts[i]
            room[part] -= 1
    return in_val

"""A validation split by image, with every class in it in the same proportion."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from boxwright.config import require
from boxwright.data.records import Record


def split(records: Sequence[Record], fraction: float, seed: int = 0) -> tuple[list[Record], list[Record]]:
    """Divide images into two parts in which the classes have the same shares.

    Iterative stratification (Sechidis et al. 2011, algorithm 1) over the objects of each class: the rarest class is
    dealt out first, each image to the part that lacks the class most. The same records, in whatever order, and the
    same seed give the same parts. Both keep the order of `records`.

    Args:
        records: images; `ignore` objects do not count.
        fraction: share of the second part, over 0 and under 1.
        seed: of the draw among equals.

    Returns:
        The larger rest and the part of exactly ``round(fraction * len(records))`` images, at least 1.

    Raises:
        UserError: the fraction is out of range, or there are fewer than two images.
    """
    require(0 < fraction < 1, f"a validation share of {fraction} is not between 0 and 1; give 0.2 for a fifth")
    require(len(records) >= 2, "one image cannot be split into training and validation; add images")
    by_name = sorted(range(len(records)), key=lambda i: (str(records[i].path), records[i].image_id))
    order = np.array(by_name)[np.random.default_rng(seed).permutation(len(records))]
    n_val = min(max(round(fraction * len(records)), 1), len(records) - 1)
    in_val = np.zeros(len(records), dtype=bool)
    in_val[order] = _deal(_class_counts([records[i] for i in order]), n_val)
    rest = [record for record, val in zip(records, in_val, strict=True) if not val]
    return rest, [record for record, val in zip(records, in_val, strict=True) if val]


def _class_counts(records: Sequence[Record]) -> np.ndarray:
    """(images, classes + 1): objects of each class, and a last column of ones that stands for the image itself."""
    n_classes = max((int(r.labels_N.max()) + 1 for r in records if len(r.labels_N)), default=0)
    counts = [np.bincount(r.labels_N[~r.ignore_N], minlength=n_classes) for r in records]
    return np.column_stack([np.array(counts).reshape(len(records), n_classes), np.ones(len(records), dtype=np.int64)])


def _deal(counts: np.ndarray, n_val: int) -> np.ndarray:
    """(images,) bool: which images go to the second part."""
    share = n_val / len(counts)
    wanted = np.stack([counts.sum(0) * (1 - share), counts.sum(0) * share])  # (2, classes + 1), what each part lacks
    wanted[:, -1] = len(counts) - n_val, n_val
    in_val, open_ = np.zeros(len(counts), dtype=bool), np.ones(len(counts), dtype=bool)
    while open_.any():
        left = counts[open_].sum(0)
        rarest = int(np.where(left > 0, left, left.max() + 1).argmin())
        for i in np.flatnonzero(open_ & (counts[:, rarest] > 0)):
            in_val[i] = part = _neediest(wanted, rarest, share)
            wanted[part] -= counts[i]
            open_[i] = False
    return in_val


def _neediest(wanted: np.ndarray, column: int, share: float) -> int:
    """The part that lacks a class most, relative to its size; a full part takes no more images."""
    if wanted[:, -1].min() < 0.5:
        return int(wanted[:, -1].argmax())
    lack = wanted[:, column] / [1 - share, share]
    return int(lack[1] > lack[0])

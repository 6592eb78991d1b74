"""A stratified validation split: each class has about the same share of its objects in it."""

from __future__ import annotations

import itertools
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from boxwright.config import require
from boxwright.data.columns import RecordTable, at, in_columns, rows_by_key, take
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
    order = _by_path(records)[np.random.default_rng(seed).permutation(len(records))]
    in_val[order] = _assign(_ObjectCounts.of(records, order), n_val)
    return take(records, ~in_val), take(records, in_val)


def _by_path(records: Sequence[Record]) -> np.ndarray:
    """The records' positions in the order of their paths; of one path, in that of their ids."""
    paths = [os.fsencode(path) for path in _paths(records)]
    order = sorted(range(len(paths)), key=paths.__getitem__)
    if any(paths[i] == paths[j] for i, j in itertools.pairwise(order)):
        ids = [record.image_id for record in records]
        order.sort(key=lambda i: (paths[i], isinstance(ids[i], str), ids[i]))
    return np.array(order)


def _paths(records: Sequence[Record]) -> Iterator[str]:
    """The path of each image; of one that is packed, before it was."""
    if isinstance(records, RecordTable):
        return records.paths()
    return (r.path.path if isinstance(r.path, PackedFile) else str(r.path) for r in records)


@dataclass(frozen=True)
class _ObjectCounts:
    """How many objects of each class are on each image, without the zeros: the E entries of a sparse matrix.

    Attributes:
        starts: the first entry of each image, and their number, (images + 1,).
        classes_E: the last class is that of images without objects.
        counts_E: objects of the class, 1 for images without.
        classes: their number.
    """

    starts: np.ndarray
    classes_E: np.ndarray
    counts_E: np.ndarray
    classes: int

    @staticmethod
    def of(records: Sequence[Record], order: np.ndarray) -> _ObjectCounts:
        """Those of records in an order, their ignored objects left out."""
        background = max((int(part.labels_N.max(initial=-1)) for part in in_columns(records)), default=-1) + 1
        entries, classes, counts = array("i"), array("i"), array("i")
        for part in in_columns(at(records, order)):
            image_N = np.concatenate([part.image_of_each[~part.ignore_N], np.arange(len(part.counts_I))])
            empty_I = np.bincount(image_N, minlength=len(part.counts_I)) == 1
            label_N = np.concatenate([part.labels_N[~part.ignore_N], np.full(len(part.counts_I), background)])
            kept = (label_N < background) | empty_I[image_N]
            cells, own = np.unique(image_N[kept] * (background + 1) + label_N[kept], return_counts=True)
            entries.frombytes(np.bincount(cells // (background + 1)).astype(np.int32).tobytes())
            classes.frombytes((cells % (background + 1)).astype(np.int32).tobytes())
            counts.frombytes(own.astype(np.int32).tobytes())
        starts = np.concatenate([[0], np.cumsum(entries)])
        return _ObjectCounts(starts, np.array(classes), np.array(counts), background + 1)


def _assign(counts: _ObjectCounts, n_val: int) -> np.ndarray:
    """(images,) bool: the images of the second part."""
    images = len(counts.starts) - 1
    total_K = np.bincount(counts.classes_E, counts.counts_E, minlength=counts.classes)
    image_E = np.repeat(np.arange(images, dtype=np.int32), np.diff(counts.starts))
    with_class = np.split(image_E[rows_by_key(counts.classes_E, counts.classes)], _ends(counts)[:-1])
    share = np.array([1 - n_val / images, n_val / images])
    lack = total_K * share[:, None]  # (2, classes), objects that each part still lacks
    left_K = total_K.copy()
    room = [images - n_val, n_val]
    in_val, waiting = np.zeros(images, dtype=bool), np.ones(images, dtype=bool)
    while waiting.any():
        rarest = int(np.where(left_K > 0, left_K, left_K.max() + 1).argmin())
        for i in with_class[rarest][waiting[with_class[rarest]]].tolist():
            part = int(lack[1, rarest] / share[1] > lack[0, rarest] / share[0]) if all(room) else int(room[1] > 0)
            in_val[i], waiting[i] = part, False
            own = slice(counts.starts[i], counts.starts[i + 1])
            lack[part, counts.classes_E[own]] -= counts.counts_E[own]
            left_K[counts.classes_E[own]] -= counts.counts_E[own]
            room[part] -= 1
    return in_val


def _ends(counts: _ObjectCounts) -> np.ndarray:
    return np.cumsum(np.bincount(counts.classes_E, minlength=counts.classes))

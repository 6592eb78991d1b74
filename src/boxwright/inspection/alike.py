"""Images that look alike, found by a perceptual hash in less than quadratic time.

The hash is pHash: 64 signs of the low frequencies of a grey thumbnail's cosine transform (Zauner, "Implementation and
Benchmarking of Perceptual Image Hash Functions", 2010). Two hashes that differ in at most `MOST_BITS` bits agree in at
least one of `MOST_BITS` + 1 bands (Norouzi et al., "Fast Search in Hamming Space with Multi-Index Hashing", 2012), so
that only images of one band are compared. Hashes of flat images agree by chance; hence the thumbnails must correlate,
too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track
from scipy.fft import dctn
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from boxwright.config import UserError
from boxwright.console import make_console
from boxwright.files import PackedFile
from boxwright.images import open_image
from boxwright.threads import map_ahead

THUMBNAIL = 32  # pixels
HASH = 8  # frequencies in each direction
MOST_BITS = 8  # of 64
LEAST_CORRELATION = 0.95  # of the thumbnails
MOST_IN_BAND = 4000  # hashes that are compared with each other; of more, each with its neighbours in order
_NEIGHBOURS = 64
_BLOCK = 512  # hashes compared with a band at a time
_AHEAD = 64  # images that are decoded or waiting


def thumbnails(paths: Iterable[Path | PackedFile], count: int) -> np.ndarray:
    """Grey thumbnails (N, THUMBNAIL, THUMBNAIL) of `count` images, uint8; of one that can't be decoded, zeros."""
    console = make_console(stderr=True)
    result_NTT = np.zeros((count, THUMBNAIL, THUMBNAIL), np.uint8)
    done = map_ahead(ThreadPoolExecutor(), _thumbnail, paths, _AHEAD)
    for i, thumbnail_TT in enumerate(track(done, "comparing", count, console=console, transient=True)):
        if thumbnail_TT is not None:
            result_NTT[i] = thumbnail_TT
    return result_NTT


def _thumbnail(path: Path | PackedFile) -> np.ndarray | None:
    try:
        image = open_image(path, side=THUMBNAIL)
    except UserError:
        return None
    return np.asarray(image.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))


def hashes(thumbnails_NTT: np.ndarray) -> np.ndarray:
    """Perceptual hashes (N,), uint64."""
    blocks = np.array_split(thumbnails_NTT, len(thumbnails_NTT) // _BLOCK + 1)
    return np.concatenate([_hashes(block) for block in blocks])


def _hashes(thumbnails_NTT: np.ndarray) -> np.ndarray:
    low_NF = dctn(thumbnails_NTT.astype(np.float32), axes=(1, 2))[:, :HASH, :HASH].reshape(-1, HASH * HASH)
    signs_NF = low_NF > np.median(low_NF[:, 1:], axis=1, keepdims=True)
    signs_NF[:, 0] = False  # the mean, which is larger than all others
    return np.packbits(signs_NF, axis=1).view(np.uint64).reshape(-1)


def groups(thumbnails_NTT: np.ndarray) -> list[np.ndarray]:
    """Positions of the images of each group of two or more that look alike; images without contrast are in none.

    An image looks like one of its group at least, not necessarily like all of them.
    """
    blocks = np.array_split(thumbnails_NTT, len(thumbnails_NTT) // _BLOCK + 1)
    usable = np.flatnonzero(
        np.concatenate([block.std((1, 2), dtype=np.float32) for block in blocks]) > 1
    )  # grey levels
    if len(usable) < 2:
        return []
    pairs = [usable[pairs_P2] for pairs_P2 in _candidates(hashes(thumbnails_NTT)[usable])]
    pairs_P2 = np.concatenate([*pairs, np.empty((0, 2), np.int64)])
    blocks = np.array_split(pairs_P2, len(pairs_P2) // (16 * _BLOCK) + 1)
    alike_P = np.concatenate([_correlation(thumbnails_NTT, block) >= LEAST_CORRELATION for block in blocks])
    first, second = pairs_P2[alike_P].T
    links = coo_matrix((np.ones(len(first), bool), (first, second)), (len(thumbnails_NTT),) * 2)
    _, group_N = connected_components(links, directed=False)
    order = np.argsort(group_N, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(group_N[order])) + 1)
    return [part for part in parts if len(part) > 1]


def _correlation(thumbnails_NTT: np.ndarray, pairs_P2: np.ndarray) -> np.ndarray:
    """Of the thumbnails of each pair (P,), -1 to 1."""
    both = thumbnails_NTT[pairs_P2].reshape(len(pairs_P2), 2, THUMBNAIL**2).astype(np.float32)
    both -= both.mean(2, keepdims=True)
    return (both[:, 0] * both[:, 1]).sum(1) / np.linalg.norm(both, axis=2).prod(1)


def _candidates(hash_N: np.ndarray) -> Iterator[np.ndarray]:
    """Pairs (P, 2) of positions whose hashes differ in at most `MOST_BITS` bits; equal ones form a chain."""
    order = np.argsort(hash_N, kind="stable")
    equal = hash_N[order][1:] == hash_N[order][:-1]
    yield np.stack([order[:-1][equal], order[1:][equal]], axis=1)
    unique = order[np.concatenate([[True], ~equal])]
    shifts = np.linspace(0, 64, MOST_BITS + 2).round().astype(int)
    for start, end in pairwise(shifts):
        band_N = (hash_N[unique] >> np.uint64(start)) & np.uint64((1 << int(end - start)) - 1)
        by_band = unique[np.argsort(band_N, kind="stable")]
        edges = np.flatnonzero(np.diff(np.sort(band_N))) + 1
        for members in np.split(by_band, edges):
            if len(members) > 1:
                yield from _close_pairs(hash_N, members)


def _close_pairs(hash_N: np.ndarray, members: np.ndarray) -> Iterator[np.ndarray]:
    if len(members) > MOST_IN_BAND:
        members = members[np.argsort(hash_N[members], kind="stable")]
        for step in range(1, _NEIGHBOURS + 1):
            close = np.bitwise_count(hash_N[members[step:]] ^ hash_N[members[:-step]]) <= MOST_BITS
            yield np.stack([members[:-step][close], members[step:][close]], axis=1)
        return
    for start in range(0, len(members), _BLOCK):
        block = members[start : start + _BLOCK]
        close = np.bitwise_count(hash_N[block][:, None] ^ hash_N[members][None, start:]) <= MOST_BITS
        i, j = np.nonzero(np.triu(close, 1))
        yield np.stack([block[i], members[start + j]], axis=1)

"""Batches from shards, without a cache that has to be built first.

An image is read and decoded when it is first asked for. Its pixels, fitted to the canvas, are kept in a file for the
epochs that follow, as far as the limit of the folder of caches goes; the others are decoded in every epoch. Both ways
give the same pixels.

An epoch's order: the shards are shuffled, and divided into groups of `GROUP` neighbours or, with several processes, of
fewer; then the images of each group are. So few shards are in use at a time, and each process reads a part of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from boxwright.config import require
from boxwright.console import make_console
from boxwright.data.cache_build import check_shape, cpu_count
from boxwright.data.cache_reading import with_targets
from boxwright.data.shards.pixels import PixelStore
from boxwright.data.shards.records import ShardRecords
from boxwright.images import fit, in_turn, open_image
from boxwright.types import Batch

GROUP = 8  # shards whose images are shuffled among each other


class ShardBatches:
    """Batches of images in shards; threads can share it. See `boxwright.data.loader.BatchSource`.

    Args:
        records: the images. Ignored objects, and those without area after clipping, are left out of the targets.
        side: of the square canvas, in pixels.
        keep: keep decoded images.
        quiet: print nothing.
    """

    in_parts = True

    def __init__(self, records: ShardRecords, side: int, keep: bool = True, quiet: bool = False) -> None:
        require(len(records), "there are no images to train on.")
        self.records, self.side = records, side
        self.checksums = {"images": records.archive.index.checksum}
        self._pixels = PixelStore(records.archive.index, side, make_console(quiet=quiet)) if keep else None

    def __len__(self) -> int:
        return len(self.records)

    def batch(self, indices: Sequence[int] | Tensor, *, pin: bool = False) -> Batch:
        """The images at these positions; see `boxwright.data.cache.Cache.batch`.

        Raises:
            UserError: a shard can't be read or is damaged, or an image can't be decoded.
        """
        index_B = torch.as_tensor(indices, dtype=torch.int64)
        images_BHWC = torch.empty(len(index_B), self.side, self.side, 3, dtype=torch.uint8, pin_memory=pin)
        sizes = list(self._decoders.map(self._put, index_B.tolist(), images_BHWC.numpy()))
        return with_targets(images_BHWC, sizes, self.records.take(index_B.numpy()).columns(), index_B)

    def order(self, seed: int, world: int) -> Tensor:
        """See `BatchSource`. Of one group, it is the order of a cache."""
        generator = torch.Generator().manual_seed(seed)
        index = self.records.archive.index
        ends = np.searchsorted(self.records.positions, index.ends)
        parts = [range(first, last) for first, last in zip([0, *ends[:-1]], ends, strict=True) if last > first]
        group = max(1, min(GROUP, len(parts) // world))
        if group < len(parts):
            parts = [parts[n] for n in torch.randperm(len(parts), generator=generator).tolist()]
        order = []
        for first in range(0, len(parts), group):
            members = torch.cat([torch.arange(part.start, part.stop) for part in parts[first : first + group]])
            order.append(members[torch.randperm(len(members), generator=generator)])
        return torch.cat(order)

    @cached_property
    def _decoders(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(cpu_count(), thread_name_prefix="boxwright-shards")

    def _put(self, position: int, out_SS3: np.ndarray) -> tuple[int, int]:
        """Fill a canvas; returns (height, width) of the image on it."""
        number = int(self.records.positions[position])
        if self._pixels and (size := self._pixels.read(number, out_SS3)):
            return size
        record = self.records[position]
        with in_turn(record.width, record.height):
            image = open_image(record.path, self.side)
        check_shape(record, image)
        out_SS3[:], size = fit(image, self.side)
        if self._pixels:
            self._pixels.write(number, out_SS3, size)
        return size

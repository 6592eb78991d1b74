"""Batches from a cache: what all kinds of caches have in common, and the one that is complete."""

from __future__ import annotations

import errno
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from boxwright.config import UserError, require
from boxwright.console import make_console
from boxwright.data.cache_build import CHECKSUMS, cpu_count, crc32c, fit_image, targets_on_canvas
from boxwright.data.columns import FlatRecords
from boxwright.data.records import Record
from boxwright.types import Batch


class Cache(ABC):
    """Images fitted to a canvas and their targets; threads can share it.

    Attributes:
        folder: where it lies.
        side: of the square canvas, in pixels.
        mode: `pixels` or `jpeg`.
    """

    folder: Path
    side: int
    mode: str
    in_parts = False  # see `BatchSource`

    @abstractmethod
    def __len__(self) -> int:
        """The number of images."""

    @abstractmethod
    def batch(self, indices: Sequence[int] | Tensor, *, pin: bool = False) -> Batch:
        """The images at these positions, uint8, on the CPU, with targets padded to the most objects of an image.

        The images are channels-last in memory, which is fastest for decoders, resizing and convolutions.

        Args:
            indices: at least one position, counted from 0.
            pin: put the images into page-locked memory, for asynchronous copies to a CUDA device.

        Raises:
            UserError: for an image that can't be used, or a damaged one that can't be made again.
        """

    @property
    @abstractmethod
    def checksums(self) -> dict[str, str]:
        """Checksums of the image files, by what of them they are of; empty if it was made by an earlier version."""

    def order(self, seed: int, world: int) -> Tensor:
        """See `BatchSource`."""
        return torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(cpu_count(), thread_name_prefix="boxwright-cache")

    def _canvas(self, count: int, pin: bool) -> Tensor:
        return torch.empty(count, self.side, self.side, 3, dtype=torch.uint8, pin_memory=pin)


@dataclass(eq=False)
class CompleteCache(Cache):
    """A cache that holds every image.

    Attributes:
        folder, side, mode: see `Cache`.
        images: uint8; (n, S, S, 3) pixels, or (bytes,) JPEG files.
        targets: sizes, boxes, labels; see the top of the file.
        records: the images, from which damaged ones are made again.
        sources: checksum of the image files; empty in a cache of an earlier version.
    """

    folder: Path
    side: int
    mode: str
    images: Tensor
    targets: dict[str, Tensor]
    records: Sequence[Record] = ()
    sources: str = ""

    def __len__(self) -> int:
        return len(self.targets["sizes_B2"])

    def batch(self, indices: Sequence[int] | Tensor, *, pin: bool = False) -> Batch:
        """See `Cache`."""
        index_B = torch.as_tensor(indices, dtype=torch.int64)
        self._verify(index_B.tolist())
        images_BHWC = self._canvas(len(index_B), pin)
        if self.mode == "pixels":
            torch.index_select(self.images, 0, index_B, out=images_BHWC)
        else:
            list(self._pool.map(self._decode, index_B.tolist(), images_BHWC))
        starts_B = self.targets["starts"][index_B]
        counts_B = self.targets["starts"][index_B + 1] - starts_B
        slots_N = torch.arange(max(1, int(counts_B.max())))
        valid_BN = slots_N < counts_B[:, None]
        zeros = len(self.targets["labels"]) - 1
        rows_BN = torch.where(valid_BN, starts_B[:, None] + slots_N, zeros)
        return Batch(
            images_BCHW=images_BHWC.permute(0, 3, 1, 2),
            sizes_B2=self.targets["sizes_B2"][index_B],
            originals_B2=self.targets["originals_B2"][index_B],
            boxes_BN4=self.targets["boxes"][rows_BN],
            labels_BN=self.targets["labels"][rows_BN],
            valid_BN=valid_BN,
            index_B=index_B,
        )

    @cached_property
    def _unread(self) -> np.ndarray:
        """(n,) True for each image that was not compared with its checksum yet."""
        return np.full(len(self), CHECKSUMS in self.targets)

    def _verify(self, positions: Sequence[int]) -> None:
        """Compare images with their checksums, each when it is first read; make damaged ones again."""
        for position in positions:
            if self._unread[position]:
                if crc32c(self.images[self._part(position)].numpy()) != int(self.targets[CHECKSUMS][position]):
                    self._repair(position)
                self._unread[position] = False

    def _part(self, position: int) -> slice:
        """Where an image lies: rows of pixels, or bytes."""
        if self.mode == "pixels":
            return slice(position, position + 1)
        return slice(*self.targets["offsets"][position : position + 2].tolist())

    def _repair(self, position: int) -> None:
        file, first = self.folder / "images.bin", int(self.targets["offsets"][position])
        damaged = f"{file} is damaged: an image has another checksum than when it was written"
        fix = f"remove {self.folder}; it is built again"
        require(position < len(self.records), f"{damaged}; {fix}.")
        fitted = fit_image(self.records[position], self.side, self.mode)
        if isinstance(fitted, UserError) or crc32c(fitted.data) != int(self.targets[CHECKSUMS][position]):
            raise UserError(f"{damaged}, and {self.records[position].path} is not what it was; {fix}.")
        with user_errors(self.folder), file.open("r+b") as stream:
            stream.seek(first)
            stream.write(fitted.data)
        make_console(stderr=True).print(f"{damaged}; it is made again from {self.records[position].path}")

    @property
    def checksums(self) -> dict[str, str]:
        """See `Cache`."""
        return {"images": self.sources} if self.sources else {}

    def _decode(self, position: int, out_HWC: Tensor) -> None:
        first, last = self.targets["offsets"][position : position + 2].tolist()
        decode(self.images[first:last], tuple(self.targets["sizes_B2"][position].tolist()), out_HWC)


def with_targets(images_BHWC: Tensor, sizes: Sequence[tuple[int, int]], columns: FlatRecords, index_B: Tensor) -> Batch:
    """A batch of images on canvases and their objects, padded to the most objects of an image.

    Args:
        images_BHWC: the square canvases, uint8.
        sizes: (height, width) of each image on its canvas, in pixels.
        columns: their annotations.
        index_B: their positions in the data set.
    """
    sizes_B2 = np.array(sizes, np.int64)
    boxes_T4, labels_T, counts_B, _ = targets_on_canvas(columns, sizes_B2, images_BHWC.shape[1])
    valid_BN = torch.arange(max(1, int(counts_B.max()))) < torch.from_numpy(counts_B)[:, None]
    boxes_BN4, labels_BN = torch.zeros(*valid_BN.shape, 4), torch.zeros(valid_BN.shape, dtype=torch.int64)
    boxes_BN4[valid_BN], labels_BN[valid_BN] = torch.from_numpy(boxes_T4), torch.from_numpy(labels_T)
    return Batch(
        images_BCHW=images_BHWC.permute(0, 3, 1, 2),
        sizes_B2=torch.from_numpy(sizes_B2),
        originals_B2=torch.from_numpy(columns.sizes_I2[:, ::-1].copy()),
        boxes_BN4=boxes_BN4,
        labels_BN=labels_BN,
        valid_BN=valid_BN,
        index_B=index_B,
    )


def decode(jpeg: Tensor, size: tuple[int, int], out_HWC: Tensor) -> None:
    """Decode a JPEG file, (bytes,) uint8, of (height, width) pixels into the top left corner of a canvas."""
    height, width = size
    image_CHW = decode_jpeg(jpeg, ImageReadMode.RGB)
    assert isinstance(image_CHW, Tensor)  # a list only for a list
    out_HWC.zero_()[:height, :width] = image_CHW.permute(1, 2, 0)


def no_room(home: Path, need: int, free: int) -> UserError:
    """That a cache of so many bytes does not fit into a folder with so many free ones."""
    return UserError(
        f"the cache needs {need:,} bytes and {home} has {free:,} free; make room, take `--cache jpeg` (a sixth of "
        "the room that pixels take), or set BOXWRIGHT_CACHE to a folder on a larger disk."
    )


@contextmanager
def user_errors(home: Path, need: int = 0) -> Iterator[None]:
    """Raise errors of the file system as `UserError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise no_room(home, need, shutil.disk_usage(home).free) from error
        reason = error.strerror or str(error)
        raise UserError(
            f"the cache cannot be written to {home}: {reason}; set BOXWRIGHT_CACHE to one that can."
        ) from error

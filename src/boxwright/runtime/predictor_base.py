"""What all that finds objects in images has in common, whatever computes: lists, streams, bounded memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from boxwright.classes import Class, class_positions
from boxwright.config import UserError, require
from boxwright.detections import Detections
from boxwright.runtime.inputs import TAKES, DecodedImage, decode
from boxwright.runtime.sequence_types import GivenObjects, StreamObject, StreamToken
from boxwright.runtime.sources import collect
from boxwright.runtime.video import frames, is_video
from boxwright.threads import map_ahead

T = TypeVar("T")


@dataclass
class ImageResult:
    """One image of a stream.

    Attributes:
        path: the file; of a frame, that of the video; None for an image that was given as such.
        image: as it was decoded for the detector, a large one reduced; a frame of a video is whole.
        size: (width, height) of the file as displayed, which the boxes refer to.
        detections: what was found.
        number: its place in the stream, from 0. Files that cannot be read count, too.
        seconds: of a frame, when it is shown.
    """

    path: Path | None
    image: Image.Image
    size: tuple[int, int]
    detections: Detections
    number: int = 0
    seconds: float | None = None

    @property
    def key(self) -> Path | int:
        """What tells it from the others: the path, or where there are many of a path, or none, the number."""
        return self.number if self.path is None or self.seconds is not None else self.path


class BasePredictor:
    """Finds objects in images. Who computes says which classes there are, for which canvas, and what is in a batch."""

    takes = TAKES

    @property
    def names(self) -> tuple[str, ...]:
        """The classes it knows."""
        raise NotImplementedError

    @property
    def image_size(self) -> int:
        """Side of the square canvas that images are fitted into, in pixels."""
        raise NotImplementedError

    def detect(
        self, ready: Sequence[DecodedImage], threshold: float, classes: Sequence[int] | None
    ) -> list[Detections]:
        """The objects in each of a batch of decoded images, of these classes (positions; None is all)."""
        raise NotImplementedError

    def decode(self, picture: Any) -> DecodedImage:
        """An image in any of the forms that `predict` takes, decoded."""
        return decode(picture, self.image_size, self.takes)

    @property
    def writes(self) -> bool:
        """Whether it writes its objects one after the other, and can be watched (`write`)."""
        return False

    def write(
        self, picture: Any, given: GivenObjects = (), classes: Class | Sequence[Class] | None = None
    ) -> Iterator[StreamToken | StreamObject]:
        """Watch the sentence of an image being written: the words of each object, then the object; given ones first.

        Nothing is computed beyond what is asked for: who stops asking stops the writer.

        Args:
            picture: an image in any of the forms that `predict` takes, or what `decode` made of one.
            given: objects that are known already, as (class, (x1, y1, x2, y2)) in pixels; with them it begins.
            classes: the class to look for, by name or position in `names`, or several; by default all.

        Raises:
            UserError: if the detector doesn't write, for an image that cannot be read, a class that it doesn't know, a
                given box outside the image, or more of them than a sentence has room for.
        """
        raise UserError(
            "this detector finds all objects at once; only one that writes (pix2seq, patchseq) can be watched."
        )

    def stream(
        self,
        source: Any,
        batch_size: int = 8,
        threshold: float = 0.5,
        skipped: list[UserError] | None = None,
        classes: Class | Sequence[Class] | None = None,
    ) -> Iterator[tuple[Any, Detections]]:
        """Each image of `source` and what is in it, in order, holding no more than three batches in memory.

        Args:
            source: a file, a folder, a glob or a text file of paths (`boxwright.runtime.sources.collect`), a video, or
                anything that yields paths or images, as a generator does.
            batch_size: how many images are computed at once.
            threshold: objects with a score over this, in [0, 1).
            skipped: a list that takes the errors of the files that cannot be read, which are then passed over, and that
                of a video which ends before its time. Without it, the first such file ends the stream.
            classes: the class to look for, by name or position in `names`, or several; by default all.

        Yields:
            The path (of frames, and of images given as such, the number, from 0) and the detections.

        Raises:
            UserError: if nothing is found, or a file cannot be read and `skipped` is None, or the detector doesn't know
                a class.
        """
        for found in self.find(source, batch_size, threshold, skipped, classes):
            yield found.key, found.detections

    def find(
        self,
        source: Any,
        batch_size: int = 8,
        threshold: float = 0.5,
        skipped: list[UserError] | None = None,
        classes: Class | Sequence[Class] | None = None,
    ) -> Iterator[ImageResult]:
        """`stream`, with the images."""
        check_threshold(threshold)
        check_batch_size(batch_size)
        wanted = class_positions(classes, self.names)
        pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
        decoded = map_ahead(pool, lambda item: _decoded(item, self.decode), _items(source), 2 * batch_size)
        for chunk in chunks(_readable(decoded, skipped), batch_size):
            found = self.detect([ready for _, ready in chunk], threshold, wanted)
            for (item, ready), detections in zip(chunk, found, strict=True):
                whole = item.seconds is not None and ready.image.size != ready.size
                image = Image.fromarray(item.picture) if whole else ready.image
                yield ImageResult(item.path, image, ready.size, detections, item.number, item.seconds)


def check_threshold(threshold: float) -> None:
    """Raise `UserError` unless it is a number and 0 <= threshold < 1."""
    right = isinstance(threshold, Real) and 0 <= threshold < 1
    require(right, f"the score threshold must be a number of at least 0 and under 1, not {threshold!r}.")


def check_batch_size(batch_size: int) -> None:
    """Raise `UserError` unless the batch size is an integer and at least 1."""
    right = isinstance(batch_size, Integral) and batch_size >= 1
    require(right, f"the batch size must be at least 1, not {batch_size!r}.")


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


@dataclass
class _Item:
    """One image of a source, not decoded yet unless it is a frame or was given as such; or why no more can be read."""

    picture: Any
    path: Path | None
    number: int
    seconds: float | None = None


def _items(source: Any) -> Iterator[_Item]:
    if isinstance(source, str | Path) and is_video(source):
        path = Path(source).expanduser()
        number = 0
        try:
            for seconds, frame in frames(path):
                yield _Item(frame, path, number, seconds)
                number += 1
        except UserError as error:
            if not number:
                raise
            yield _Item(error, path, number)
        return
    pictures = collect(source) if isinstance(source, str | Path) else source
    require(isinstance(pictures, Iterable), f"a source is a path, or yields images, not {type(source)}.")
    for number, picture in enumerate(pictures):
        yield _Item(picture, Path(picture) if isinstance(picture, str | Path) else None, number)


def _decoded(item: _Item, decode: Callable[[Any], DecodedImage]) -> tuple[_Item, DecodedImage | UserError]:
    if isinstance(item.picture, UserError):
        return item, item.picture
    try:
        return item, decode(item.picture)
    except UserError as error:
        return item, error


def _readable(
    decoded: Iterable[tuple[_Item, DecodedImage | UserError]], skipped: list[UserError] | None
) -> Iterator[tuple[_Item, DecodedImage]]:
    for item, ready in decoded:
        if not isinstance(ready, UserError):
            yield item, ready
        elif skipped is None:
            raise ready
        else:
            skipped.append(ready)

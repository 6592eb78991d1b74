"""What all predictors share, whatever computes: single images, lists and streams, in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from numbers import Integral
from pathlib import Path
from typing import Any, TypeVar, overload

from PIL import Image

from boxwright.classes import Class, class_positions
from boxwright.config import UserError, require
from boxwright.detections import Detections
from boxwright.files import PackedFile
from boxwright.runtime.inputs import TAKES, DecodedImage, ImageInput, decode, kept, whole
from boxwright.runtime.sequence_types import (
    CheckedObjects,
    GivenObjects,
    StreamObject,
    StreamToken,
    check_given,
    check_lists,
)
from boxwright.runtime.sources import collect
from boxwright.runtime.tiles import Tiling, merge, views
from boxwright.runtime.video import frames, is_video
from boxwright.threads import map_ahead
from boxwright.thresholds import Thresholds, is_threshold

T = TypeVar("T")


@dataclass
class ImageResult:
    """One image of a stream.

    Attributes:
        path: the file, which may lie in a shard; for a frame, the video; None for an image that was given as such.
        image: as it was decoded for the detector, a large one reduced; a frame of a video is whole.
        size: (width, height) of the file as displayed, which the boxes refer to.
        detections: the objects.
        number: its place in the stream, from 0. Files that cannot be read count, too.
        seconds: when a frame is shown; None for other images.
    """

    path: Path | PackedFile | None
    image: Image.Image
    size: tuple[int, int]
    detections: Detections
    number: int = 0
    seconds: float | None = None

    @property
    def key(self) -> Path | PackedFile | int:
        """What identifies it: the path, or the number where there is no path or where many images share it."""
        return self.number if self.path is None or self.seconds is not None else self.path


class BasePredictor:
    """Finds objects in images. A subclass computes a batch (`detect`), and tokens if its detector generates them.

    Attributes:
        takes: which forms of an image it takes, for errors.
        kind: which detector it is, for errors.
    """

    takes: str = TAKES
    kind: str = "this detector"

    @property
    def names(self) -> tuple[str, ...]:
        """The classes it knows."""
        raise NotImplementedError

    @property
    def image_size(self) -> int:
        """Side of the square canvas that images are fitted into, in pixels."""
        raise NotImplementedError

    @property
    def card(self) -> Mapping[str, Any]:
        """The model card: how the detector was trained, its thresholds."""
        return {}

    @property
    def thresholds(self) -> Thresholds:
        """The scores over which objects count where the caller gives no threshold: those that the model card stores.

        Raises:
            UserError: if what it stores are no thresholds.
        """
        return Thresholds.from_card(self.card)

    @property
    def generates_tokens(self) -> bool:
        """Whether its detector generates objects token by token, so that `stream_tokens` can be used."""
        return False

    def detect(
        self,
        images: Sequence[DecodedImage],
        threshold: float,
        classes: Sequence[int] | None,
        given: Sequence[CheckedObjects] | None = None,
        objects: int | None = None,
    ) -> list[Detections]:
        """The objects of each image, computed as one batch.

        Args:
            images: decoded (`decode`).
            threshold: objects with a score over this.
            classes: positions of the classes to look for; None is all.
            given: objects of each image that are known already.
            objects: the most to generate, given ones included.

        Raises:
            UserError: for given objects, or a number of them, that this detector cannot take.
        """
        raise NotImplementedError

    def _stream_tokens(
        self, image: DecodedImage, given: CheckedObjects, classes: Sequence[int] | None
    ) -> Iterator[StreamToken | StreamObject]:
        """`stream_tokens` of a detector that generates tokens."""
        raise NotImplementedError

    @staticmethod
    def whole(image: Any) -> Image.Image:
        """An image in any of the forms that `predict` takes, decoded, and not reduced."""
        return whole(image)

    def decode(self, image: Any) -> DecodedImage:
        """An image in any of the forms that `predict` takes, decoded."""
        return decode(image, self.image_size, self.takes)

    @overload
    def predict(
        self,
        image: ImageInput,
        threshold: float | None = None,
        batch_size: int = 8,
        classes: Class | Sequence[Class] | None = None,
        given: GivenObjects | None = None,
        objects: int | None = None,
        tile: int | None = None,
        overlap: float = 0.2,
    ) -> Detections: ...
    @overload
    def predict(
        self,
        image: list[Any] | tuple[Any, ...],
        threshold: float | None = None,
        batch_size: int = 8,
        classes: Class | Sequence[Class] | None = None,
        given: Sequence[GivenObjects] | None = None,
        objects: int | None = None,
        tile: int | None = None,
        overlap: float = 0.2,
    ) -> list[Detections]: ...
    def predict(
        self,
        image: ImageInput | list[Any] | tuple[Any, ...],
        threshold: float | None = None,
        batch_size: int = 8,
        classes: Class | Sequence[Class] | None = None,
        given: Any = None,
        objects: int | None = None,
        tile: int | None = None,
        overlap: float = 0.2,
    ) -> Detections | list[Detections]:
        """The objects in an image, or in each of a list of images, best first, in pixels of the image.

        Args:
            image: a path, the bytes of a file, a file object, a PIL image, a numpy array (H, W, 3) uint8 in RGB order,
                or a list or tuple of any of these; a checkpoint's predictor also takes tensors (3, H, W), uint8 or
                float in [0, 1].
            threshold: objects with a score over this, in [0, 1); by default that of their class in `thresholds`.
            batch_size: how many images of a list are computed at once; an exported file computes those of the same
                size together.
            classes: the class to look for, by name or position in `names`, or several; by default all.
            given: objects that are known already, as (class, (x1, y1, x2, y2)) in pixels; the others are returned. For
                a list of images, a list for each. Only sequence detectors (pix2seq, patchseq) take them.
            objects: the most to generate, given ones included; also only for sequence detectors, and not for exported
                files, which hold this number.
            tile: look for small objects in square tiles of this side, in pixels, too (`boxwright.runtime.tiles`).
            overlap: share of a side by which tiles overlap.

        Raises:
            UserError: if a file cannot be read, or an array is none of these; for a class that the detector doesn't
                know, a given box outside its image, or more objects than a sequence has room for.
        """
        limits = self._limits(threshold)
        check_batch_size(batch_size)
        check_objects(objects)
        wanted = class_positions(classes, self.names)
        tiling = _tiling(tile, overlap)
        alone = tiling is None or (given is None and objects is None)
        require(alone, "given objects, and a number of them, are those of a whole image; leave --tile out.")
        if not isinstance(image, list | tuple):
            return self._predict(
                [image], None if given is None else [given], limits, wanted, objects, (tiling, batch_size)
            )[0]
        check_lists(given, len(image))
        found: list[Detections] = []
        for first in range(0, len(image), batch_size):
            batch = slice(first, first + batch_size)
            given_here = None if given is None else given[batch]
            found += self._predict(image[batch], given_here, limits, wanted, objects, (tiling, batch_size))
        return found

    def _predict(
        self,
        images: Sequence[Any],
        given: Sequence[GivenObjects] | None,
        limits: Sequence[float],
        classes: Sequence[int] | None,
        objects: int | None,
        tiled: tuple[Tiling | None, int],
    ) -> list[Detections]:
        """The objects of one batch of images with a score over the limit of their class; `tiled` is how tiles are cut,
        and how many are computed at once.
        """
        tiling, batch_size = tiled
        images = [kept(image) for image in images]
        decoded = [self._decode(image, tiling) for image in images]
        checked = None
        if given is not None:
            checked = [check_given(own, image.size, self.names) for own, image in zip(given, decoded, strict=True)]
        if tiling is None:
            found = self.detect(decoded, min(limits), classes, checked, objects)
        else:
            found = [self._detect_tiled(image, min(limits), classes, tiling, batch_size) for image in decoded]
        return [
            replace(each.above(limits), size=image.size, image=partial(self.whole, given_as))
            for each, image, given_as in zip(found, decoded, images, strict=True)
        ]

    def _decode(self, image: Any, tiling: Tiling | None) -> DecodedImage:
        """An image, decoded; one that will be cut into tiles is not reduced."""
        if tiling is None:
            return self.decode(image)
        picture = self.whole(image)
        return DecodedImage(picture, picture.size)

    def _detect_tiled(
        self, image: DecodedImage, limit: float, classes: Sequence[int] | None, tiling: Tiling, batch_size: int
    ) -> Detections:
        """The objects of an image in its tiles and as a whole."""
        tiles_T4 = tiling.tiles(*image.size)
        batches = chunks(views(image, tiles_T4, self.image_size), batch_size)
        return merge([found for batch in batches for found in self.detect(batch, limit, classes)], tiles_T4, image.size)

    def _limits(self, threshold: float | None) -> list[float]:
        """The threshold of each class: this one, or where it is None those that are stored."""
        if threshold is None:
            return self.thresholds.of(self.names)
        check_threshold(threshold)
        return [float(threshold)] * len(self.names)

    def stream_tokens(
        self, image: Any, given: GivenObjects = (), classes: Class | Sequence[Class] | None = None
    ) -> Iterator[StreamToken | StreamObject]:
        """The tokens of each object, then the object, as soon as they are generated; given objects come first.

        If the caller stops iterating, generation stops. An exported file computes all objects before the first token.

        Args:
            image: in any of the forms that `predict` takes, or decoded (`decode`).
            given: objects that are known already, as (class, (x1, y1, x2, y2)) in pixels; the sequence begins with
                them.
            classes: the class to look for, by name or position in `names`, or several; by default all.

        Raises:
            UserError: if the detector doesn't generate tokens; for an image that cannot be read, a class that the
                detector doesn't know, a given box outside the image, or more of them than a sequence has room for.
        """
        only = "only one that generates tokens (pix2seq, patchseq) can stream them"
        require(self.generates_tokens, f"{self.kind} finds all objects at once; {only}.")
        wanted = class_positions(classes, self.names)
        decoded = image if isinstance(image, DecodedImage) else self.decode(image)
        return self._stream_tokens(decoded, check_given(given, decoded.size, self.names), wanted)

    def stream(
        self,
        source: Any,
        batch_size: int = 8,
        threshold: float | None = None,
        skipped: list[UserError] | None = None,
        classes: Class | Sequence[Class] | None = None,
        tile: int | None = None,
        overlap: float = 0.2,
    ) -> Iterator[tuple[Any, Detections]]:
        """Each image of `source` and its objects, in order, with no more than three batches in memory.

        Args:
            source: a file, a folder, a glob or a text file of paths (`boxwright.runtime.sources.collect`), a video, or
                anything that yields paths or images, as a generator does.
            batch_size: how many images are computed at once.
            threshold: objects with a score over this, in [0, 1); by default that of their class in `thresholds`.
            skipped: a list for the errors of files that cannot be read, which are then skipped, and of a video that
                ends before its time. Without it, the first such file ends the stream.
            classes: the class to look for, by name or position in `names`, or several; by default all.
            tile, overlap: see `predict`.

        Yields:
            The path (the number, from 0, for frames and images given as such) and the detections.

        Raises:
            UserError: if the source has no image, or a file cannot be read and `skipped` is None, or the detector
                doesn't know a class.
        """
        for result in self.find(source, batch_size, threshold, skipped, classes, tile, overlap):
            yield result.key, result.detections

    def find(
        self,
        source: Any,
        batch_size: int = 8,
        threshold: float | None = None,
        skipped: list[UserError] | None = None,
        classes: Class | Sequence[Class] | None = None,
        tile: int | None = None,
        overlap: float = 0.2,
    ) -> Iterator[ImageResult]:
        """`stream`, with the images."""
        limits = self._limits(threshold)
        check_batch_size(batch_size)
        wanted, tiling = class_positions(classes, self.names), _tiling(tile, overlap)
        pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
        ahead = 2 * batch_size if tiling is None else 2  # whole images may be large
        decoded = map_ahead(
            pool, lambda item: _decoded(item, lambda image: self._decode(image, tiling)), _items(source), ahead
        )
        for chunk in chunks(_readable(decoded, skipped), batch_size if tiling is None else 1):
            if tiling is None:
                found = self.detect([image for _, image in chunk], min(limits), wanted)
            else:
                found = [self._detect_tiled(image, min(limits), wanted, tiling, batch_size) for _, image in chunk]
            for (item, image), detections in zip(chunk, found, strict=True):
                yield self._result(item, image, detections.above(limits))

    def _result(self, item: _Item, image: DecodedImage, detections: Detections) -> ImageResult:
        reduced_frame = item.seconds is not None and image.image.size != image.size
        shown = Image.fromarray(item.image) if reduced_frame else image.image
        of_file = partial(self.whole, item.path) if item.path is not None and item.seconds is None else None
        detections = replace(detections, size=image.size, image=of_file)
        return ImageResult(item.path, shown, image.size, detections, item.number, item.seconds)


def _tiling(tile: int | None, overlap: float) -> Tiling | None:
    return None if tile is None else Tiling(tile, overlap)


def check_threshold(threshold: float) -> None:
    """Raise `UserError` unless it is a number and 0 <= threshold < 1."""
    right = is_threshold(threshold)
    require(right, f"the score threshold must be a number of at least 0 and under 1, not {threshold!r}.")


def check_batch_size(batch_size: int) -> None:
    """Raise `UserError` unless the batch size is an integer and at least 1."""
    right = isinstance(batch_size, Integral) and batch_size >= 1
    require(right, f"the batch size must be at least 1, not {batch_size!r}.")


def check_objects(objects: Any) -> None:
    """Raise `UserError` unless it is a whole number, or None."""
    whole = objects is None or (isinstance(objects, Integral) and not isinstance(objects, bool))
    require(whole, f"objects is how many to generate at most, a whole number, not {objects!r}.")


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


@dataclass
class _Item:
    """One image of a source.

    Attributes:
        image: as it was given, or a frame; a `UserError` where a video can't be read any further.
        path, number, seconds: as in `ImageResult`.
    """

    image: Any
    path: Path | PackedFile | None
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
    images = collect(source) if isinstance(source, str | Path) else source
    require(isinstance(images, Iterable), f"a source is a path, or yields images, not {type(source)}.")
    for number, image in enumerate(images):
        path = Path(image) if isinstance(image, str) else image if isinstance(image, Path | PackedFile) else None
        yield _Item(image, path, number)


def _decoded(item: _Item, decode: Callable[[Any], DecodedImage]) -> tuple[_Item, DecodedImage | UserError]:
    if isinstance(item.image, UserError):
        return item, item.image
    try:
        return item, decode(item.image)
    except UserError as error:
        return item, error


def _readable(
    decoded: Iterable[tuple[_Item, DecodedImage | UserError]], skipped: list[UserError] | None
) -> Iterator[tuple[_Item, DecodedImage]]:
    """The images that could be decoded; errors of the others go into `skipped`, or are raised where it is None."""
    for item, image in decoded:
        if not isinstance(image, UserError):
            yield item, image
        elif skipped is None:
            raise image
        else:
            skipped.append(image)

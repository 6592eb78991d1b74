"""Parsed images in columns, and columns of parsed images in a list."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, overload

import numpy as np

from boxwright.data.columns import ImageColumns as ImageColumns
from boxwright.data.columns import ObjectColumns as ObjectColumns
from boxwright.data.columns import RecordTable, all_usable
from boxwright.data.parsed import ParsedDataset, ParsedImage, ParsedImages, fill_sizes

if TYPE_CHECKING:
    from boxwright.data.id_column import IdColumn


MARK = ", annotation {}"  # see `ParsedImage`


class ImageTable(ParsedImages):
    """Parsed images, each made when it is asked for, so that changing one changes nothing here.

    Args:
        images: of one file.
        objects: of these images.
        marks: ids of all annotations of the file.
    """

    def __init__(self, images: ImageColumns, objects: ObjectColumns, marks: IdColumn) -> None:
        self.images, self.objects, self._marks = images, objects, marks

    def __len__(self) -> int:
        return len(self.images.names)

    @overload
    def __getitem__(self, index: int) -> ParsedImage: ...
    @overload
    def __getitem__(self, index: slice) -> list[ParsedImage]: ...
    def __getitem__(self, index: int | slice) -> ParsedImage | list[ParsedImage]:
        if isinstance(index, slice):
            return [self._image(i) for i in range(len(self))[index]]
        return self._image(range(len(self))[index])

    def __iter__(self) -> Iterator[ParsedImage]:
        return map(self._image, range(len(self)))

    def records(self, empty_boxes: bool) -> tuple[RecordTable, int]:
        """See `ParsedImages`."""
        keep_M = all_usable(self.images.image_sizes, self.objects, empty_boxes)
        return RecordTable(self.images, self.objects, keep_M), int((~keep_M).sum())

    def fill_sizes(self, parsed: ParsedDataset) -> None:
        """Take width and height from the image file where the annotation does not have them."""
        unknown = np.flatnonzero((self.images.image_sizes <= 0).any(1)).tolist()
        images = [self._image(i) for i in unknown]
        fill_sizes(parsed, images)
        for i, image in zip(unknown, images, strict=True):
            self.images.sizes[2 * i : 2 * i + 2] = array("i", (image.width, image.height))

    def mark(self, image: int, place: int) -> int | str:
        """The id of an object, by its place on its image."""
        row = int(self.objects.starts[image]) + place
        return self._marks[row if self.objects.rows_M is None else int(self.objects.rows_M[row])]

    def _image(self, position: int) -> ParsedImage:
        images, objects = self.images, self.objects
        first, last = objects.starts[position : position + 2].tolist()
        rows = range(first, last) if objects.rows_M is None else objects.rows_M[first:last].tolist()
        return ParsedImage(
            path=images.path(position),
            width=images.sizes[2 * position],
            height=images.sizes[2 * position + 1],
            image_id=images.ids[position],
            source=images.source(position),
            mark=MARK,
            boxes=[(x1, y1, x2, y2) for x1, y1, x2, y2 in objects.boxes_M4[first:last].tolist()],
            labels=objects.labels_M[first:last].tolist(),
            ignore=objects.ignore_M[first:last].tolist(),
            marks=[self._marks[row] for row in rows],
        )


def mark_of(images: Sequence[ParsedImage], image: int, place: int) -> int | str:
    """The id of an object, by its place on its image, without making the whole image."""
    return images.mark(image, place) if isinstance(images, ImageTable) else images[image].marks[place]


def where_of(images: Sequence[ParsedImage], image: int, place: int) -> str:
    """File and record of an object, by its place on its image, without making the whole image."""
    if isinstance(images, ImageTable):
        return images.images.source(image) + MARK.format(images.mark(image, place))
    return images[image].where(place)


def names_there(images: Sequence[ParsedImage]) -> Iterator[tuple[str, str]]:
    """Folder and name of each image's file."""
    for path in paths_of(images):
        folder, name = os.path.split(path)
        yield folder or ".", name


def paths_of(images: Sequence[ParsedImage]) -> Iterator[str]:
    """The path of each image, as text."""
    if isinstance(images, ImageTable):
        return images.images.paths()
    return (str(image.path) for image in images)


def columns_of(images: Sequence[ParsedImage]) -> tuple[np.ndarray, ObjectColumns]:
    """(width, height) of each image, (I, 2) int32, and the objects."""
    if isinstance(images, ImageTable):
        return images.images.image_sizes, images.objects
    boxes = array("d", (value for image in images for box in image.boxes for value in box))
    return (
        np.array([(image.width, image.height) for image in images], np.int32).reshape(-1, 2),
        ObjectColumns(
            starts=np.concatenate([[0], np.cumsum([len(image.boxes) for image in images])]).astype(np.int64),
            boxes_M4=np.array(boxes, np.float64).reshape(-1, 4),
            labels_M=np.array([label for image in images for label in image.labels], np.int32),
            ignore_M=np.array([ignore for image in images for ignore in image.ignore], bool),
        ),
    )

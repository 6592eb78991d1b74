"""Images as annotation files of any format describe them, and the step from there to a `ParsedDataset`.

A reader adds `AnnotatedImage`s with names of files and classes as written. `Collection.finish` finds the image files,
makes the list of classes, and turns fractions into pixels, in the same way for every format.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from boxwright.data.folders import can_be_a_file, data_root, files_in, in_order
from boxwright.data.formats.shapes import Box, MalformedError
from boxwright.data.image_index import ImageIndex
from boxwright.data.parsed import ParsedDataset, ParsedImage, check_names, fill_sizes, read_text
from boxwright.images import IMAGE_SUFFIXES

T = TypeVar("T")

_IMAGE_FOLDERS = ("images", "Images", "image_2", "img", "JPEGImages", "data")


@dataclass
class AnnotatedImage:
    """One image of a file.

    Attributes:
        name: of the image file, as written.
        source: the annotation file and record, for error messages.
        folder: of the annotation file.
        split: the split that the image belongs to.
        width, height: in pixels; 0 where the annotation does not give them.
        fractions: boxes are fractions of width and height, not pixels.
        by_stem: the name has no ending, because the format gives none.
        mark: see `ParsedImage`.
        objects: class name, box xyxy, whether it is ignored, and its mark.
    """

    name: str
    source: str
    folder: Path
    split: str
    width: int = 0
    height: int = 0
    fractions: bool = False
    by_stem: bool = False
    mark: str = ", object {}"
    objects: list[tuple[str, Box, bool, int | str]] = field(default_factory=list)

    def add(self, label: object, box: Box, mark: int | str, ignore: bool = False) -> None:
        """Append one object.

        Raises:
            MalformedError: the class is neither text nor a number, or empty.
        """
        if isinstance(label, bool) or not isinstance(label, (str, int, float)) or not str(label).strip():
            raise MalformedError("has no class")
        self.objects.append((str(label).strip(), box, ignore, mark))


@dataclass
class Collection:
    """All images of a data set, with the faults found on the way.

    Attributes:
        parsed: the result; it has only faults until `finish`.
        images: in the order of the files.
        names: classes that the files declare, in their order; a class that is only used comes after them, sorted.
        closed: whether a class that is not in `names` is a fault.
        left_out: how many objects of each kind are no boxes ("points", ...), and where the first is.
    """

    parsed: ParsedDataset
    images: list[AnnotatedImage] = field(default_factory=list)
    names: dict[str, None] = field(default_factory=dict)
    closed: bool = False
    left_out: Counter[str] = field(default_factory=Counter)
    _first: dict[str, str] = field(default_factory=dict)

    def new_image(self, name: object, file: Path, split: str, record: str = "") -> AnnotatedImage:
        """Add an image that is still without objects.

        Raises:
            MalformedError: the name is no text, empty, or none that a file can have.
        """
        if not isinstance(name, str) or not name.strip():
            raise MalformedError("names no image file")
        if not can_be_a_file(name):
            raise MalformedError(f"no file can have the name {name!r:.60}")
        self.images.append(AnnotatedImage(name.strip(), f"{file}{record}", file.parent, split))
        return self.images[-1]

    def declare(self, names: Iterable[object]) -> None:
        """Add classes that a file lists."""
        self.names.update(dict.fromkeys(str(name).strip() for name in names if isinstance(name, (str, int))))

    def leave_out(self, kind: str, where: str) -> None:
        """Count an object that is no box."""
        self.left_out[kind] += 1
        self._first.setdefault(kind, where)

    def attempt(self, where: str, function: Callable[..., T], *values: Any) -> T | None:
        """The result of parsing a record; None, and a fault recorded, if it is not as the format says."""
        try:
            return function(*values)
        except MalformedError as error:
            self.parsed.add_fault("broken-record", where, str(error))
        except KeyError as error:
            self.parsed.add_fault("broken-record", where, f"has no `{error.args[0]!s:.60}`")
        except (TypeError, ValueError, AttributeError, IndexError, OverflowError):
            self.parsed.add_fault("broken-record", where, f"is not built as {self.parsed.format} describes it")
        return None

    def load_json(self, file: Path) -> Any:
        """The content of a JSON file; None, and a fault recorded, if it is broken."""
        text = read_text(file, self.parsed)
        return None if text is None else self.parse_json(text, str(file))

    def parse_json(self, text: str, where: str) -> Any:
        """The content of a JSON text; None, and a fault recorded, if it is broken."""
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            what = f"is not valid JSON ({error.msg}, line {error.lineno}, column {error.colno})"
        except RecursionError:
            what = "is nested too deeply"
        except ValueError:
            what = "holds a number of thousands of digits"
        self.parsed.add_fault("broken-file", where, what)
        return None

    def finish(self) -> ParsedDataset:
        """The data set, with the files of the images."""
        parsed, used = self.parsed, {label for image in self.images for label, *_ in image.objects}
        parsed.names = (*self.names, *(() if self.closed else sorted(used - set(self.names))))
        check_names(parsed, parsed.root, parsed.names)
        positions = {name: i for i, name in enumerate(parsed.names)}
        splits: dict[str, list[AnnotatedImage]] = {}
        for image in self.images:
            splits.setdefault(image.split, []).append(image)
        index = ImageIndex(parsed)
        for split, images in in_order(splits).items():
            parsed.splits[split] = self._images(images, positions, index)
        index.finish()
        _check_unlisted(parsed)
        for kind, count in self.left_out.items():
            parsed.add_fault("unused-object", self._first[kind], f"is the first of {count} {kind}, which are left out")
        return parsed

    def _images(
        self, images: Sequence[AnnotatedImage], positions: dict[str, int], index: ImageIndex
    ) -> list[ParsedImage]:
        places = _image_folders(Path(self.parsed.root), images)
        result = []
        for i, image in enumerate(images, 1):
            place = places[image.folder]
            path = place.stems.get(image.name) if image.by_stem else None
            path = path or index.find(image.name, place.folder, image.source)
            result.append(ParsedImage(path, image.width, image.height, i, image.source, image.mark))
        fill_sizes(self.parsed, result)
        for image, target in zip(images, result, strict=True):
            scale = (target.width, target.height) * 2 if image.fractions else (1, 1, 1, 1)
            for label, box, ignore, mark in image.objects:
                if label in positions:
                    x1, y1, x2, y2 = (value * by for value, by in zip(box, scale, strict=True))
                    target.add((x1, y1, x2, y2), positions[label], ignore, mark)
                else:
                    where = image.source + image.mark.format(mark)
                    self.parsed.add_fault("unknown-class", where, f"{label!r} is not in the list of classes")
        return result


@dataclass(frozen=True)
class _Place:
    """Where the images of an annotation folder are, and their files by stem where names have no ending."""

    folder: Path
    stems: dict[str, Path]


def _image_folders(root: Path, images: Sequence[AnnotatedImage]) -> dict[Path, _Place]:
    """The folder with most of the images of each annotation folder."""
    by_folder: dict[Path, list[AnnotatedImage]] = {}
    for image in images:
        by_folder.setdefault(image.folder, []).append(image)
    return {folder: _image_folder(root, folder, images) for folder, images in by_folder.items()}


def _image_folder(root: Path, here: Path, images: Sequence[AnnotatedImage]) -> _Place:
    splits = sorted({image.split for image in images})
    bases = [here, here.parent, data_root(root)]
    inside = [base / name for base in bases for name in _IMAGE_FOLDERS]
    deeper = [base / split for base in (*bases, *inside) for split in (*splits, here.name)]
    folders = [folder for folder in dict.fromkeys([*bases, *inside, *deeper]) if folder.is_dir()]
    sample = images[:: max(1, len(images) // 50)]
    if not sample or not sample[0].by_stem:
        names = [image.name.replace("\\", "/") for image in sample]
        return _Place(max(folders, key=lambda folder: sum((folder / name).is_file() for name in names)), {})
    stems = {folder: {file.stem: file for file in files_in(folder, IMAGE_SUFFIXES)} for folder in folders}
    best = max(folders, key=lambda folder: sum(image.name in stems[folder] for image in sample))
    return _Place(best, stems[best])


def _check_unlisted(parsed: ParsedDataset) -> None:
    """Note images that lie beside those of the data set and that no annotation names."""
    used = {Path(str(image.path)) for images in parsed.splits.values() for image in images}
    for folder in sorted({path.parent for path in used}):
        unlisted = [file for file in files_in(folder, IMAGE_SUFFIXES) if file not in used]
        if unlisted:
            what = f"{len(unlisted)} images are not in the annotations ({unlisted[0].name}, ...)"
            parsed.add_fault("unlisted-image", folder, what)


def text_size(row: dict[str, Any], width: str = "width", height: str = "height") -> tuple[int, int]:
    """Width and height of a record in pixels; 0 where it gives none that can be used."""
    sides = [_side(row.get(key)) for key in (width, height)]
    return sides[0], sides[1]


def _side(value: object) -> int:
    try:
        side = float(value) if isinstance(value, (str, int, float)) else 0.0
    except (ValueError, OverflowError):
        return 0
    return int(side) if 0 < side < 1e7 else 0

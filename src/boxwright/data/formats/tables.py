"""CSV, a row per object: Roboflow, TensorFlow, Kaggle, Open Images, keras-retinanet, makesense.ai, Google's AutoML.

Columns are found by their names, whatever their case and separators; what is known is in the tuples below. Without a
header the four layouts of `_HEADERLESS` are known. Sources: https://docs.roboflow.com (`_annotations.csv`),
https://github.com/fizyr/keras-retinanet#csv-datasets, https://storage.googleapis.com/openimages/web/download_v7.html,
https://cloud.google.com/vision/automl/object-detection/docs/csv-format.

Boxes are pixels, but fractions if all coordinates of the file lie between 0 and 1. Corners are taken as written. A
row without a box is an image without that object. `IsGroupOf`, `iscrowd`, `difficult` and `ignore` become ignore. A
list of classes beside the file (`classes.csv`: name, id; Open Images' `class-descriptions*.csv`: id, name) gives
order or names.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from boxwright.data.folders import files_in, split_name
from boxwright.data.formats.collection import AnnotatedImage, Collection, text_size
from boxwright.data.formats.shapes import Box, center_box, number, plain_box, size_box
from boxwright.data.parsed import read_text

ONE_CLASS = "object"  # the class of files that name none
_IMAGE = (
    "filename", "filenames", "file", "filepath", "imagename", "imagepath", "imagefile", "imagefilename", "imageid",
    "image", "path", "imgname", "imgpath", "imgid", "img", "frame", "externalid",
)  # fmt: skip
_CLASS = (
    "classname", "labelname", "categoryname", "class", "label", "category", "object", "name", "target", "classid",
    "labelid", "categoryid",
)  # fmt: skip
_BOXES: tuple[tuple[tuple[str, ...], Callable[[Iterable[object]], Box]], ...] = (
    (("xmin", "ymin", "xmax", "ymax"), plain_box),
    (("xtl", "ytl", "xbr", "ybr"), plain_box),
    (("left", "top", "right", "bottom"), plain_box),
    (("x0", "y0", "x1", "y1"), plain_box),
    (("x1", "y1", "x2", "y2"), plain_box),
    (("xmin", "ymin", "width", "height"), size_box),
    (("bboxx", "bboxy", "bboxwidth", "bboxheight"), size_box),
    (("left", "top", "width", "height"), size_box),
    (("xcenter", "ycenter", "width", "height"), center_box),
    (("cx", "cy", "w", "h"), center_box),
    (("x", "y", "width", "height"), size_box),
    (("x", "y", "w", "h"), size_box),
    (("bbox",), size_box),  # "[x, y, width, height]" in one cell
)
_SIZES = (("imagewidth", "imageheight"), ("imgwidth", "imgheight"), ("originalwidth", "originalheight"))
_IGNORE = ("isgroupof", "iscrowd", "difficult", "ignore")
_SPLIT = ("split", "set", "subset", "usage")
_NAME, _NUMBER = r"[^,;\t\n]+\.[A-Za-z]{3,4}", r"\s*-?[\d.]+(?:[eE]-?\d+)?\s*"
_HEADERLESS = (
    (rf"{_NAME}(,{_NUMBER}){{4}},[^,]+", "filename xmin ymin xmax ymax class"),
    (rf"{_NAME},,,,,", "filename xmin ymin xmax ymax class"),
    (rf"[^,]+(,{_NUMBER}){{4}},{_NAME}(,{_NUMBER}){{2}}", "class x y width height filename imagewidth imageheight"),
    (rf"{_NAME}(,{_NUMBER}){{2}},[^,]+(,{_NUMBER}){{4}}", "filename width height class xmin ymin xmax ymax"),
    (r"(TRAIN|VALIDATION|TEST|UNASSIGNED),[^,]+\.\w+,.*", "split filename class xmin ymin - - xmax ymax - -"),
)
HEADERLESS = r"\A\ufeff?(" + "|".join(pattern for pattern, _ in _HEADERLESS) + r")\s*(\n|\Z)"


@dataclass(frozen=True)
class _Columns:
    """Where in a row the parts are; -1 and () for what is not there."""

    image: int
    label: int
    box: tuple[int, ...]
    make_box: Callable[[Iterable[object]], Box]
    size: tuple[int, ...]
    ignore: int
    split: int

    @classmethod
    def find(cls, header: Sequence[str]) -> _Columns | str:
        """From the names of the columns, or what they lack."""
        places = {re.sub(r"[^a-z0-9]", "", name.lower()): i for i, name in reversed(list(enumerate(header)))}
        first = {
            key: next((places[name] for name in names if name in places), -1)
            for key, names in {"image": _IMAGE, "label": _CLASS, "ignore": _IGNORE, "split": _SPLIT}.items()
        }
        keys, make_box = next(((k, f) for k, f in _BOXES if set(k) <= set(places)), ((), plain_box))
        seen = ", ".join(header)[:200]
        if first["image"] < 0:
            return f"has no column of image names, such as `filename` (columns: {seen})"
        if not keys:
            return f"has no columns of a box, such as `xmin`, `ymin`, `xmax`, `ymax` (columns: {seen})"
        sizes = [pair for pair in (*_SIZES, ("width", "height")) if set(pair) <= set(places) - set(keys)]
        size = tuple(places[key] for key in sizes[0]) if sizes else ()
        return cls(box=tuple(places[key] for key in keys), make_box=make_box, size=size, **first)


def read(collection: Collection, file: Path, split: str) -> None:
    """Add the images of a file."""
    text = read_text(file, collection.parsed)
    if text is None:
        return
    first = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text), delimiter=max(",;\t", key=first.count))
    fixed = next((names for pattern, names in _HEADERLESS if re.fullmatch(pattern, first.strip())), None)
    images: dict[str, AnnotatedImage] = {}
    try:
        columns = _Columns.find(fixed.split() if fixed else next(reader, []))
        if isinstance(columns, str):
            collection.parsed.add_fault("broken-file", f"{file}:1", columns)
            return
        names = _class_names(collection, file)
        for row in reader:
            if any(row):
                where = f"{file}:{reader.line_num}"
                collection.attempt(
                    where, _read_row, collection, images, row, columns, names, file, split, reader.line_num
                )
    except csv.Error as error:
        collection.parsed.add_fault("broken-file", f"{file}:{reader.line_num}", f"is not valid CSV ({error})")
        return
    if columns.label < 0:
        what = f"has no column of classes; every object is of the class {ONE_CLASS!r}"
        collection.parsed.add_fault("unnamed-class", file, what)
    _set_unit(images.values())


def _read_row(
    collection: Collection,
    images: dict[str, AnnotatedImage],
    row: Sequence[str],
    columns: _Columns,
    names: dict[str, str],
    file: Path,
    split: str,
    line: int,
) -> None:
    name = row[columns.image].strip()
    image = images.get(name)
    if image is None:
        word = row[columns.split] if columns.split >= 0 else ""
        image = images[name] = collection.new_image(name, file, split_name(word) or split)
        image.mark = ":{}"
        if columns.size:
            width, height = (row[i] for i in columns.size)
            image.width, image.height = text_size({"width": width, "height": height})
    cells = [row[i] for i in columns.box]
    if len(cells) == 1:
        cells = re.split(r"[,\s]+", cells[0].strip(" []()")) if cells[0].strip(" []()") else []
    if not any(cell.strip() for cell in cells):
        return
    label = row[columns.label].strip() if columns.label >= 0 else ONE_CLASS
    ignore = columns.ignore >= 0 and row[columns.ignore].strip().lower() in ("1", "1.0", "true")
    image.add(names.get(label, label), columns.make_box(cells), line, ignore)


def _set_unit(images: Iterable[AnnotatedImage]) -> None:
    """Fractions if no coordinate of the file is outside 0 to 1."""
    images = list(images)
    largest = max((abs(value) for image in images for _, box, *_ in image.objects for value in box), default=2.0)
    for image in images:
        image.fractions = largest <= 1.0


def _class_names(collection: Collection, file: Path) -> dict[str, str]:
    """Names by id, from a list of classes near the file; a list of names with ids sets the order."""
    near = (file.parent, file.parent.parent)
    for folder in (*near, *(folder / "metadata" for folder in near)):  # FiftyOne's
        for listed in files_in(folder, [".csv"]):
            if listed != file and re.fullmatch(r"class(es|_?names|_?list|-descriptions.*)", listed.stem, re.IGNORECASE):
                rows = [
                    row for row in csv.reader(io.StringIO(read_text(listed, collection.parsed) or "")) if len(row) == 2
                ]
                if rows and all(row[1].strip().isdecimal() for row in rows):
                    collection.declare(name for _, name in sorted((number(id_), name) for name, id_ in rows))
                    return {}
                return {id_.strip(): name.strip() for id_, name in rows}
    return {}

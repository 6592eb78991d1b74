"""Text files of boxes in pixels: KITTI, VisDrone and WIDER FACE.

Sources: KITTI's devkit (`readme.txt` of the object development kit,
https://www.cvlibs.net/datasets/kitti/eval_object.php); https://github.com/VisDrone/VisDrone2018-DET-toolkit;
http://shuoyang1213.me/WIDERFACE (`readme.txt` of the annotations).

KITTI and VisDrone have a file per image, of the same stem. What they mark as regions to ignore, without a class
(`DontCare`, VisDrone's category 0), is left out. VisDrone's objects of score 0, and WIDER FACE's invalid faces,
become ignore.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from boxwright.data.formats.collection import AnnotatedImage, Collection
from boxwright.data.formats.shapes import MalformedError, number, numbers, plain_box, size_box
from boxwright.data.parsed import read_text

VISDRONE = (
    "pedestrian", "people", "bicycle", "car", "van", "truck", "tricycle", "awning-tricycle", "bus", "motor", "others",
)  # fmt: skip
FACE = "face"


def read_kitti(collection: Collection, file: Path, split: str) -> None:
    """Add the image of a file; `labels.txt` above the folder, as CVAT writes it, lists the classes."""
    image = _image_of(collection, file, split)
    for line, row in _rows(collection, file, None):
        if row[0].lower() == "dontcare":
            collection.leave_out("regions to ignore (DontCare)", f"{file}:{line}")
        else:
            collection.attempt(f"{file}:{line}", _add_kitti, image, row, line)


def _add_kitti(image: AnnotatedImage, row: Sequence[str], line: int) -> None:
    if len(row) not in (15, 16):
        raise MalformedError(f"has {len(row)} columns; KITTI has 15, or 16 with a score")
    image.add(row[0], plain_box(row[4:8]), line)


def read_visdrone(collection: Collection, file: Path, split: str) -> None:
    """Add the image of a file: rows of x, y, width, height, score, category, truncation, occlusion."""
    image = _image_of(collection, file, split)
    collection.declare(VISDRONE)
    for line, row in _rows(collection, file, ","):
        collection.attempt(f"{file}:{line}", _add_visdrone, collection, image, row, line)


def _add_visdrone(collection: Collection, image: AnnotatedImage, row: Sequence[str], line: int) -> None:
    values = numbers(cell for cell in row if cell.strip())
    if len(values) != 8 or values[5] not in range(12):
        raise MalformedError("is no row of VisDrone: 8 numbers, the 6th a category from 0 to 11")
    if values[5] == 0:
        collection.leave_out("regions to ignore (category 0)", f"{image.source}:{line}")
    else:
        image.add(VISDRONE[int(values[5]) - 1], size_box(values[:4]), line, values[4] == 0)


def read_wider(collection: Collection, file: Path, split: str) -> None:
    """Add the images of a file: a line with the name, one with the number of faces, then a row a face."""
    image: AnnotatedImage | None = None
    expected: float = 0
    for line, row in _rows(collection, file, None):
        where = f"{file}:{line}"
        if row[-1].lower().endswith((".jpg", ".jpeg", ".png")):
            _check_count(collection, image, expected)
            image, expected = collection.attempt(where, _new_image, collection, file, split, row), 0
        elif image is None:
            collection.parsed.add_fault("broken-record", where, "belongs to no image")
        elif len(row) == 1:
            expected = collection.attempt(where, number, row[0]) or 0
        elif expected or any(cell != "0" for cell in row):  # an image without faces has one row of zeros
            collection.attempt(where, _add_face, image, row, line)
    _check_count(collection, image, expected)


def _new_image(collection: Collection, file: Path, split: str, row: Sequence[str]) -> AnnotatedImage:
    image = collection.new_image(" ".join(row), file, split)
    image.mark = ":{}"
    return image


def _add_face(image: AnnotatedImage, row: Sequence[str], line: int) -> None:
    values = numbers(row)
    image.add(FACE, size_box(values[:4]), line, len(values) > 7 and values[7] == 1)


def _check_count(collection: Collection, image: AnnotatedImage | None, expected: float) -> None:
    if image is not None and len(image.objects) != expected:
        what = f"{image.name} has {len(image.objects)} rows of faces, and {expected:g} are announced"
        collection.parsed.add_fault("broken-record", image.source, what)


def _image_of(collection: Collection, file: Path, split: str) -> AnnotatedImage:
    image = collection.new_image(file.stem, file, split)
    image.by_stem, image.mark = True, ":{}"
    return image


def _rows(collection: Collection, file: Path, separator: str | None) -> list[tuple[int, list[str]]]:
    """Line number and cells of each line that is not empty."""
    text = read_text(file, collection.parsed) or ""
    return [(i, line.strip().split(separator)) for i, line in enumerate(text.split("\n"), 1) if line.strip()]

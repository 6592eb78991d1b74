"""Which format an annotation file has, by its ending and by marks near its beginning and its end."""

from __future__ import annotations

import gzip
import os
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from boxwright.config import UserError
from boxwright.data.folders import split_name, suffix_of, walk
from boxwright.data.formats import (
    createml,
    cvat,
    huggingface,
    json_labels,
    label_studio,
    labelme,
    tables,
    text_labels,
    via,
)
from boxwright.data.formats.collection import Collection
from boxwright.data.parsed import ParsedDataset
from boxwright.images import IMAGE_SUFFIXES

_PEEK = 16384  # bytes read at each end of a file
_NEAR = 200  # files that are compared with all formats where none fits


@dataclass(frozen=True)
class Format:
    """A format of annotation files.

    Attributes:
        name: of `ParsedDataset.format`.
        title: for messages.
        suffixes: of its files.
        marks: what a file contains, for messages, and the regular expression that finds it.
        read: adds the images of a file to a collection.
        per_image: there is a file for each image, named after it.
    """

    name: str
    title: str
    suffixes: tuple[str, ...]
    marks: tuple[tuple[str, str], ...]
    read: Callable[[Collection, Path, str], None]
    per_image: bool = False


def _lists(*keys: str) -> tuple[tuple[str, str], ...]:
    return tuple((f"list `{key}`", rf'"{key}"\s*:\s*\[') for key in keys)


COCO_PER_IMAGE = Format(
    "coco", "COCO JSON, several files", (".json",), _lists("images", "annotations", "categories"),
    json_labels.read_coco_image, per_image=True,
)  # fmt: skip

FORMATS = (
    Format(
        "labelme", "labelme JSON", (".json",),
        (*_lists("shapes"), ("`imagePath`", r'"image(Path|Height|Data)"')),
        labelme.read, per_image=True,
    ),
    Format(
        "label-studio", "Label Studio JSON", (".json",),
        (
            ("list `annotations` or `predictions`", r'"(annotations|completions|predictions|original_width)"\s*:'),
            ("list `result`", r'"(result"\s*:\s*\[|(rectangle|polygon|ellipse)labels")'),
            ("`data`", r'"(data"\s*:\s*\{|original_width")'),
        ),
        label_studio.read,
    ),
    Format(
        "cvat", "CVAT for images XML", (".xml",),
        (("<annotations>", r"<annotations>"), ("<image>", r"<(image|track)\s")),
        cvat.read,
    ),
    Format(
        "via", "VIA JSON", (".json",),
        (
            ("`regions`", r'"regions"\s*:\s*[\[{]'),
            ("`shape_attributes`", r'"(shape_attributes|_via_img_metadata|file_attributes)"'),
        ),
        via.read,
    ),
    Format(
        "via", "VIA CSV", (".csv",),
        (("column `region_shape_attributes`", r"\A[^\n]*region_shape_attributes"),),
        via.read_csv,
    ),
    Format(
        "csv", "CSV with a row per object", (".csv", ".tsv"),
        (
            ("column `filename`", r"(?i)\A[^\n]*\b(file|image|img|path|frame)"),
            ("column `xmin`", r"(?i)\A[^\n]*\b(x|x_?min|x_?[01]|left|bbox(_?x)?|xtl|x_?center|cx)\b"),
        ),
        tables.read,
    ),
    Format(
        "csv", "CSV without a header", (".csv", ".txt"),
        (("a row `a.jpg,x1,y1,x2,y2,class`", tables.HEADERLESS),),
        tables.read,
    ),
    Format(
        "createml", "CreateML JSON", (".json",),
        (
            ("list `annotations`", r'"annotations?"\s*:\s*\['),
            ("`coordinates`", r'"coordinates"\s*:\s*\{'),
            ("`image`", r'"(image|imagefilename|filename|imageURL)"\s*:'),
        ),
        createml.read,
    ),
    Format(
        "huggingface", "Hugging Face metadata.jsonl", (".jsonl", ".gz"),
        (("`file_name`", r'"file_name"\s*:'), ("`objects`", r'"objects"\s*:')),
        huggingface.read,
    ),
    Format(
        "crowdhuman", "CrowdHuman odgt", (".odgt",),
        (("`ID`", r'"ID"\s*:'), ("list `gtboxes`", r'"gtboxes"\s*:\s*\[')),
        json_labels.read_crowdhuman,
    ),
    Format(
        "datumaro", "Datumaro JSON", (".json",),
        (
            ("`categories` with `label`", r'"categories"\s*:\s*\{'),
            ("list `items`", r'"(items|media_type|annotations)"\s*:'),
        ),
        json_labels.read_datumaro,
    ),
    Format(
        "fiftyone", "FiftyOne JSON", (".json",),
        (
            ("`samples` or `labels`", r'"(samples"\s*:\s*\[|labels"\s*:\s*\{)'),
            ("`bounding_box`", r'"bounding_box"\s*:'),
        ),
        json_labels.read_fiftyone,
    ),
    Format(
        "bdd100k", "BDD100K JSON", (".json",),
        (
            ("`name`", r'"name"\s*:'),
            ("list `labels` or `objects`", r'"(labels|objects)"\s*:\s*\['),
            ("`box2d`", r'"(box2d|poly2d)"\s*:'),
        ),
        json_labels.read_bdd,
    ),
    Format(
        "supervisely", "Supervisely JSON", (".json",),
        (*_lists("objects"), ("`size`", r'"size"\s*:\s*\{'), ("`classTitle`", r'"(classTitle|tags)"\s*:')),
        json_labels.read_supervisely, per_image=True,
    ),
    Format(
        "kitti", "KITTI text", (".txt",),
        (("a row of a class and 14 numbers", r"\A\s*[A-Za-z]\S*( -?[\d.eE+-]+){14,15}\s*(\n|\Z)"),),
        text_labels.read_kitti, per_image=True,
    ),
    Format(
        "visdrone", "VisDrone text", (".txt",),
        (("a row of 8 whole numbers with commas", r"\A\s*\d+(,-?\d+){7},?\s*(\n|\Z)"),),
        text_labels.read_visdrone, per_image=True,
    ),
    Format(
        "wider", "WIDER FACE text", (".txt",),
        (("a name, a number and a row of numbers", r"\A\s*[^\n]+\.(jpg|jpeg|png)\s*\n\s*\d+\s*\n\s*\d+( -?\d+){3}"),),
        text_labels.read_wider,
    ),
    COCO_PER_IMAGE,
)  # fmt: skip
_SUFFIXES = frozenset(suffix for format_ in FORMATS for suffix in format_.suffixes)


def format_of(file: Path) -> Format | None:
    """The format of a file, or None."""
    ends = _ends_of(file)
    return next((f for f in _of_suffix(file) if ends and all(_has(ends, mark) for _, mark in f.marks)), None)


def _of_suffix(file: Path) -> list[Format]:
    return [format_ for format_ in FORMATS if file.suffix.lower() in format_.suffixes]


def _has(ends: str, mark: str) -> bool:
    return re.search(mark, ends) is not None


def _ends_of(file: Path) -> str:
    """The beginning of a file and, of long files, its end."""
    try:
        if file.suffix.lower() == ".gz":
            with gzip.open(file) as packed:
                return packed.read(_PEEK).decode("utf-8-sig", errors="replace")
        with file.open("rb") as stream:
            ends = stream.read(_PEEK)
            size = os.fstat(stream.fileno()).st_size
            if size > _PEEK:
                stream.seek(max(_PEEK, size - _PEEK))
                ends += b"\n" + stream.read(_PEEK)
    except (OSError, EOFError, ValueError, zlib.error):
        return ""
    return ends.decode("utf-8-sig", errors="replace")


def read_file(file: Path) -> ParsedDataset | None:
    """The data set of one annotation file; None if its format is unknown."""
    format_ = format_of(file) if file.is_file() else None
    return None if format_ is None else read(file, format_, [file])


def read_folder(root: Path) -> ParsedDataset | None:
    """The data set whose annotation files lie in a folder or below it; None if there are none.

    Raises:
        UserError: there are files of several formats.
    """
    names, unknown, stems = _listing(root)
    if not names:
        return None
    if len(names) > 1:
        listed = " and ".join(f"{f.title} ({files[0].relative_to(root)})" for f, files in names.items())
        raise UserError(
            f"{root} has {len(names)} formats at once: {listed}; "
            "give the one annotation file to use, or move the others away"
        )
    format_, files = next(iter(names.items()))
    spare = [file for file in unknown if file.suffix.lower() in format_.suffixes]
    if format_.per_image:  # a file that is named like an image belongs to it, whatever it holds
        files = sorted([*files, *(file for file in spare if file.stem in stems)])
        folders = {file.parent for file in files}
        spare = [file for file in spare if file.stem not in stems and file.parent in folders]
        parsed = read(root, format_, files)
        if spare:
            what = f"{len(spare)} files are not in the format {format_.title} and are not read ({spare[0].name}, ...)"
            parsed.add_fault("unused-file", spare[0].parent, what)
        return parsed
    return read(root, format_, files)


def one_image_each(files: dict[str, Path]) -> bool:
    """Whether COCO files, by split, are a file per image: several, not named after splits, the first with one image."""
    if len(files) < 2 or any(split_name(split) for split in files):
        return False
    return all(file.read_bytes().count(b'"file_name"') == 1 for file in list(files.values())[:5])


def _listing(root: Path) -> tuple[dict[Format, list[Path]], list[Path], set[str]]:
    """Files by format, other files of such endings, and the stems and names of all images."""
    found: defaultdict[Format, list[Path]] = defaultdict(list)
    unknown, stems = [], set()
    for folder, names in walk(root):
        for name in names:
            if suffix_of(name) in IMAGE_SUFFIXES:
                stems |= {name.rpartition(".")[0], name}
            elif suffix_of(name) in _SUFFIXES:
                file = Path(folder, name)
                format_ = format_of(file)
                (unknown if format_ is None else found[format_]).append(file)
    return found, unknown, stems


def read(root: Path, format_: Format, files: Sequence[Path]) -> ParsedDataset:
    """The data set of these files."""
    collection = Collection(ParsedDataset(root, format_.name))
    splits = [split_of(file, root, format_.per_image) for file in files]
    for file, split in zip(files, splits, strict=True):
        if split == "all" and set(splits) != {"all"} and not format_.per_image:  # a split of an unusual name
            split = file.parent.name if file.parent != root else file.name.partition(".")[0]
        format_.read(collection, file, split)
    return collection.finish()


def split_of(file: Path, root: Path, per_image: bool = False) -> str:
    """The split that a file's name, or else the nearest folder below `root`, stands for; else ``all``.

    >>> split_of(Path("data/lvis_v1_train.json"), Path("data")), split_of(Path("data/valid/a.json"), Path("data"), True)
    ('train', 'val')
    """
    folders = file.relative_to(root).parts[:-1] if file.is_relative_to(root) else ()
    names = [*folders] if per_image else [*folders, file.name.partition(".")[0]]
    return next((split for name in reversed(names) if (split := _split_in(name))), "all")


def _split_in(name: str) -> str | None:
    """The one split among the words of a name."""
    splits = {split for word in re.findall(r"[A-Za-z]+", name) if (split := split_name(word))}
    return splits.pop() if len(splits) == 1 else None


def nearest_format(root: Path) -> str:
    """What the format that fits best lacks, as a sentence for the error where none fits; empty if none fits at all."""
    best: tuple[float, str] = (0.0, "")
    for file in _sample(root):
        ends = _ends_of(file)
        for format_ in _of_suffix(file):
            there = [name for name, mark in format_.marks if _has(ends, mark)]
            missing = [name for name, mark in format_.marks if not _has(ends, mark)]
            share = len(there) / len(format_.marks)
            if missing and share > best[0]:
                text = f"{file.name} has {' and '.join(there)} but no {' and no '.join(missing)}"
                best = (share, f"nearest is {format_.title}: {text}")
    return best[1]


def _sample(root: Path) -> Iterator[Path]:
    """The first annotation files of a folder."""
    if root.is_file():
        yield root
        return
    count = 0
    for folder, names in walk(root):
        for name in names:
            if suffix_of(name) in _SUFFIXES:
                yield Path(folder, name)
                count += 1
                if count >= _NEAR:
                    return

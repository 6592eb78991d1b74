"""Where the XML files and the images of a PASCAL VOC data set are: the devkit's folders, or folders of any name."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from boxwright.config import UserError
from boxwright.data.folders import (
    any_case,
    by_split,
    files_in,
    in_order,
    split_name,
    split_of,
    subfolders,
    suffix_of,
    walk,
    words_of,
)
from boxwright.data.image_index import fold
from boxwright.data.parsed import loose_text
from boxwright.images import IMAGE_SUFFIXES


@dataclass(frozen=True)
class Folder:
    """The folders of a split: XML files, images, and the list of its ids, if there is one.

    Where several folders of XML files share their images (`shared`), an image without XML belongs to none of them.
    """

    annotations: Path
    images: Path
    ids: Path | None = None
    shared: bool = False


def find(root: Path) -> dict[str, list[Folder]]:
    """The folders of a data set by split, in the places where devkit and tools have them; empty if they are not."""
    if root.name.lower() == "annotations" and _xml_files(root):
        root = root.parent
    folder = _folder_at(root)
    if folder is None:
        inside = {sub.name: f for sub in subfolders(root) if split_name(sub.name) and (f := _folder_at(sub))}
        return {split: [folder] for split, folder in by_split(list(inside), list(inside.values())).items()}
    return _splits_of(root, folder)


def find_anywhere(root: Path) -> dict[str, list[Folder]]:
    """The folders of a data set by split, whatever they are called and however deep they are; empty if none has XML.

    A part of a folder's path may name the split (`xml/train`, `train_xml`). The images of `annots/train` are in
    `images/train`: in the folder of the same path but for the words that say what is in it.

    Raises:
        UserError: some folders name a split, and some do not.
    """
    annotations, images = list[Path](), defaultdict[tuple[str, ...], list[Path]](list)
    for path, names in walk(root):
        folder, suffixes = Path(path), {suffix_of(name) for name in names}
        if ".xml" in suffixes and _xml_files(folder):
            annotations.append(folder)
        if suffixes & set(IMAGE_SUFFIXES):
            images[words_of(folder.relative_to(root))].append(folder)
    every = [folder for folders in images.values() for folder in folders]
    found = defaultdict[str | None, list[Folder]](list)
    for folder in annotations:
        path = folder.relative_to(root)
        alike = [folder] if folder in every else images[words_of(path)] or every
        shared = len(annotations) > 1 and alike == every
        found[split_of(path)].append(Folder(folder, alike[0] if len(alike) == 1 else folder, shared=shared))
    if len(found) > 1 and None in found:
        other, example = found.pop(None)[0].annotations, next(iter(found.values()))[0].annotations
        raise UserError(f"{other} has XML files, and names no split, as {example} does; move one of them away")
    if len(annotations) == 1:
        (folder,) = found[split_of(annotations[0].relative_to(root))]
        return _splits_of(root, folder) if None in found else dict(found)  # type: ignore[arg-type]
    return in_order({split or "all": folders for split, folders in found.items()})


def _splits_of(root: Path, folder: Folder) -> dict[str, list[Folder]]:
    """The splits of one folder of XML files by their lists of ids, or ``all``."""
    lists = _split_lists(root, folder)
    if {"train", "val"} <= set(lists):
        lists.pop("trainval", None)
    splits = {split: [Folder(folder.annotations, folder.images, file)] for split, file in lists.items()}
    return in_order(splits) or {"all": [folder]}


def beside_images(folder: Path) -> bool:
    """Whether XML files and their images lie directly in a folder."""
    return any(place.annotations == folder == place.images for places in find(folder).values() for place in places)


def holds_images(splits: dict[str, list[Folder]]) -> bool:
    """Whether a folder of images is among the folders of a data set: else they are elsewhere."""
    return any(files_in(folder.images, IMAGE_SUFFIXES) for folders in splits.values() for folder in folders)


def _folder_at(root: Path) -> Folder | None:
    """Annotations and images below `root`; capitals do not matter."""
    for name in ("Annotations", "Annotations/xmls", "xmls", "labels", "."):
        annotations = any_case(root, Path(name))
        if annotations is not None and _xml_files(annotations):
            paths = [any_case(root, Path(folder)) for folder in ("JPEGImages", "images")]
            images = [path for path in paths if path is not None] + [annotations, root]
            return Folder(annotations, next((f for f in images if files_in(f, IMAGE_SUFFIXES)), images[0]))
    return None


def _split_lists(root: Path, folder: Folder) -> dict[str, Path]:
    """The lists of ids by split: in `ImageSets/Main`, or in another of the usual places if they name XML files."""
    main = any_case(root, Path("ImageSets/Main"))
    lists = files_in(main, [".txt"]) if main is not None else []
    if lists:
        return {file.stem: file for file in lists if not _is_class_list(file)}
    stems = {fold(file.stem) for file in files_in(folder.annotations, [".xml"])}
    for place in ("ImageSets", "splits", "ImageSets/Layout", "Annotations", "."):
        path = any_case(root, Path(place))
        lists = files_in(path, [".txt"]) if path is not None else []
        named = {split_name(file.stem): file for file in lists if split_name(file.stem) and _lists_any(file, stems)}
        if named:
            return {split: file for split, file in named.items() if split is not None}
    return {}


def _lists_any(file: Path, stems: set[str]) -> bool:
    lines = loose_text(file.read_bytes()).splitlines()
    return any(fold(listed_stem(line)) in stems for line in lines if line.strip())


def listed_stem(line: str) -> str:
    """The id in a line: its first word where other columns are numbers, without folders and the ending of a file."""
    text = re.sub(r"(\s+-?\d+)+\s*$", "", line.strip()).replace("\\", "/").rpartition("/")[2]
    return text.rpartition(".")[0] if suffix_of(text) in {*IMAGE_SUFFIXES, ".xml"} else text


def _xml_files(folder: Path) -> list[Path]:
    """The XML files of a folder, if one of the first few begins with <annotation>."""
    files = files_in(folder, [".xml"])
    return files if any(_is_annotation(file) for file in files[:20]) else []


def _is_annotation(file: Path) -> bool:
    with file.open("rb") as stream:
        return re.search(rb"<annotation[\s>]", stream.read(2000)) is not None  # not CVAT's <annotations>


def _is_class_list(file: Path) -> bool:
    """Whether it is VOC's list of one class (`cat_train.txt`), whose lines end in -1, 0 or 1."""
    lines = [line for line in loose_text(file.read_bytes()).splitlines() if line.strip()]
    prefix, _, split = file.stem.rpartition("_")
    return bool(prefix and split_name(split) and lines) and all(
        re.fullmatch(r".*\s(-1|0|1)\s*", line) for line in lines
    )

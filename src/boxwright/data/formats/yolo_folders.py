"""YOLO without `data.yaml`: labels beside or parallel to the images, and a list of classes, one name a line.

The list is `classes.txt` (Label Studio, labelImg), `obj.names` or another ``.names`` (darknet, CVAT's YOLO 1.1,
FiftyOne's YOLOv4). Where folders beside each other have lists that differ, as labelImg writes them, each is that of the
labels in and below its folder, and classes are matched by name. Darknet's `obj.data` names the lists of images;
elsewhere, folders named after splits are the splits.

Sources: https://github.com/AlexeyAB/darknet#how-to-train-to-detect-your-custom-objects,
https://docs.cvat.ai/docs/manual/advanced/formats/format-yolo/, https://labelstud.io/guide/export.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from boxwright.config import UserError
from boxwright.data import yolo
from boxwright.data.folders import can_be_a_file, files_in, in_order, split_name, split_of, suffix_of, walk
from boxwright.data.image_index import ImageIndex
from boxwright.data.parsed import ParsedDataset, listed_names, merged_lists, read_text
from boxwright.images import IMAGE_SUFFIXES

_CLASS_LISTS = ("classes.txt", "predefined_classes.txt", "names.txt")
_SPLIT_ORDER = {"train": 0, "trainval": 1, "val": 2, "test": 3}
_ROW = re.compile(rb"\s*\d+([ \t]+-?[\d.]+([eE]-?\d+)?){4,}\s*(\n|\Z)")


def find(root: Path) -> list[Path]:
    """The lists of classes of a folder that holds YOLO labels; several if they differ. [] if it does not, or has none.

    Raises:
        UserError: lists that differ are not in folders beside each other.
    """
    lists = class_lists(root)
    if not lists or not has_labels(root):
        return []
    if len({file.read_bytes().strip() for file in lists}) == 1:
        return lists[:1]
    folders = [file.parent for file in lists]
    if any(one is not other and one.is_relative_to(other) for one in folders for other in folders):
        listed = ", ".join(str(file.relative_to(root)) for file in lists)
        raise UserError(f"{root} has several lists of classes that differ ({listed}); keep one of them")
    return sorted(lists, key=lambda file: _SPLIT_ORDER.get(_split_of(root, file.parent), len(_SPLIT_ORDER)))


def class_lists(root: Path) -> list[Path]:
    """Files that list classes, the highest first."""
    found = [
        Path(folder, name)
        for folder, names in walk(root)
        for name in names
        if name.lower() in _CLASS_LISTS or name.lower().endswith(".names")
    ]
    return sorted(found, key=lambda file: (len(file.parts), file))


def has_labels(root: Path) -> bool:
    """Whether one of the first label files of each folder has rows of YOLO."""
    for folder, names in walk(root):
        texts = [name for name in names if name.lower().endswith(".txt") and name.lower() not in _CLASS_LISTS]
        for name in texts[:20]:
            with Path(folder, name).open("rb") as stream:
                if _ROW.match(stream.read(2000)):
                    return True
    return False


def read(root: Path, lists: Sequence[Path]) -> ParsedDataset:
    """Parse the images of a folder, with the classes of one list, or of one list for each folder of labels."""
    parsed = ParsedDataset(root, "yolo")
    names = {file: listed_names(parsed, file) for file in lists}
    parsed.names = merged_lists(parsed, names)
    splits = _listed_splits(parsed, root) or _folder_splits(root)
    for split in [split for split, images in splits.items() if not images]:
        parsed.add_fault("empty-split", root, f"the list of the split {split!r} has no images")
        del splits[split]
    by_folder = {file.parent: {i: parsed.names.index(n) for i, n in enumerate(own)} for file, own in names.items()}
    yolo.read_splits(parsed, in_order(splits), _ClassIndices(by_folder, len(lists) == 1).of)
    return parsed


@dataclass(frozen=True)
class _ClassIndices:
    """The class position of each index in the label files in and below each folder."""

    by_folder: dict[Path, dict[int, int]]
    everywhere: bool

    def of(self, label_file: Path) -> dict[int, int]:
        """The class positions for a label file; none if it lies outside all the folders."""
        if self.everywhere:
            return next(iter(self.by_folder.values()))
        return next((found for folder in label_file.parents if (found := self.by_folder.get(folder))), {})


def _listed_splits(parsed: ParsedDataset, root: Path) -> dict[str, list[Path]]:
    """The splits that darknet's `obj.data` names, or lists of images such as `train.txt`."""
    index = ImageIndex(parsed)
    lists: dict[str, Path] = {}
    for data in files_in(root, [".data"]):
        for line in (read_text(data, parsed) or "").split("\n"):
            key, _, value = (part.strip() for part in line.partition("="))
            if split := split_name(key):
                name = _below(root, value).rpartition("/")[2]
                file = next((file for file in files_in(root, [".txt"]) if file.name == name), None)
                if file is None:
                    parsed.add_fault("missing-split", data, f"`{key} = {value:.200}` does not exist")
                else:
                    lists[split] = file
    for file in files_in(root, [".txt"]) if not lists else ():
        if (split := split_name(file.stem) or ("all" if file.stem == "images" else "")) and _lists_images(file):
            lists[split] = file
    splits = {split: _images_of_list(parsed, root, file, index) for split, file in lists.items()}
    index.finish()
    return splits


def _lists_images(file: Path) -> bool:
    with file.open("rb") as stream:
        first = stream.readline(4096).decode("utf-8", errors="replace").strip()
    return suffix_of(first) in IMAGE_SUFFIXES


def _images_of_list(parsed: ParsedDataset, root: Path, file: Path, index: ImageIndex) -> list[Path]:
    images = []
    for number, line in enumerate((read_text(file, parsed) or "").split("\n"), 1):
        name, where = _below(root, line.strip()), f"{file}:{number}"
        if not can_be_a_file(name):
            parsed.add_fault("broken-record", where, f"no file can have the name {name!r:.60}")
        elif name:
            images.append(index.find(name, root, where))
    return images


def _below(root: Path, name: str) -> str:
    """A listed name without the ``data/`` that darknet and CVAT write in front of it."""
    text = name.replace("\\", "/").removeprefix("./")
    return text if (root / "data").is_dir() else text.removeprefix("data/")


def _folder_splits(root: Path) -> dict[str, list[Path]]:
    """All images below a folder; the nearest folder named after a split is the split."""
    splits: dict[str, list[Path]] = {}
    for folder, names in walk(root):
        images = [Path(folder, name) for name in names if suffix_of(name) in IMAGE_SUFFIXES]
        if images:
            splits.setdefault(_split_of(root, Path(folder)), []).extend(images)
    return splits


def _split_of(root: Path, folder: Path) -> str:
    """The split that the nearest folder of a path below `root` stands for."""
    return split_of(folder.relative_to(root)) or "all"

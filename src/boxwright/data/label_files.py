"""Find the label file of each image of a YOLO folder: in `labels` for `images`, or beside the image.

Where neither has any, they are in the folder whose path has the same words but for those that say what is inside
(`annos/train` for `imgs/train`). A label file has the image's name with another ending (`a.txt`) or with one more
(`a.jpg.txt`). One that no image has in this way is matched without ``%xx``, in another Unicode form (NFC) or in other
capitals.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from boxwright.data.folders import any_case, data_root, files_in, suffix_of, walk, words_of
from boxwright.data.image_index import fold
from boxwright.data.parsed import ParsedDataset
from boxwright.images import IMAGE_SUFFIXES

_ROW = re.compile(rb"^\s*\d+(\.0*)?(\s+[-+.\deE]+){4}", re.MULTILINE)


class LabelFiles:
    """The label files of a data set. Folders are listed once.

    Args:
        parsed: the data set; receives the faults.
        images: the image files of all splits.
    """

    def __init__(self, parsed: ParsedDataset, images: Sequence[Path]) -> None:
        self._parsed = parsed
        self._folders: dict[Path, list[Path]] = {}  # where the labels of the images in a folder may be
        self._names: dict[Path, dict[str, list[Path]]] = {}  # label files of a folder by folded stem
        self._exact: dict[Path, frozenset[str]] = {}
        images = list(dict.fromkeys(images))
        self._found = self._all_as_named(images)
        if not self._found and self._search_folders({image.parent for image in images}):
            self._found = self._all_as_named(images)
        self._check_shared()
        self._match_spellings([image for image in images if image not in self._found])
        self._check_unmatched(images)

    def of(self, image: Path) -> Path | None:
        """The label file of an image; None if it has none."""
        return self._found.get(image)

    def folder(self, image: Path) -> Path:
        """Where the label of an image should be."""
        return self._label_folders(image.parent)[0]

    def _label_folders(self, folder: Path) -> list[Path]:
        """`folder` with a part `images` replaced by `labels`, the last one first, and itself; those that exist."""
        if folder not in self._folders:
            parts = folder.parts
            places = [i for i in reversed(range(len(parts))) if parts[i].lower() in ("images", "image")]
            paths = [any_case(Path(*parts[:i]), Path("labels", *parts[i + 1 :])) for i in places]
            self._folders[folder] = [path for path in paths if path is not None and path.is_dir()] + [folder]
            for path in self._folders[folder]:
                self._list(path)
        return self._folders[folder]

    def _list(self, folder: Path) -> None:
        if folder not in self._names:
            files = files_in(folder, [".txt"])
            self._exact[folder] = frozenset(file.name for file in files)
            self._names[folder] = defaultdict(list)
            for file in files:
                self._names[folder][fold(unquote(file.stem))].append(file)

    def _search_folders(self, folders: set[Path]) -> bool:
        """Look for the folders of label files in the whole data set; False if there is none."""
        root, places = data_root(Path(self._parsed.root)), defaultdict[tuple[str, ...], list[Path]](list)
        for path, names in walk(root):
            if any(suffix_of(name) == ".txt" and _has_rows(Path(path, name)) for name in names[:20]):
                places[words_of(Path(path).relative_to(root))].append(Path(path))
        for folder in folders:
            alike = places[words_of(folder.relative_to(root))] if folder.is_relative_to(root) else []
            if len(alike) == 1:
                self._folders[folder] = [*alike, folder]
                self._list(alike[0])
        return bool(places)

    def _all_as_named(self, images: Sequence[Path]) -> dict[Path, Path]:
        return {image: file for image in images if (file := self._as_named(image)) is not None}

    def _as_named(self, image: Path) -> Path | None:
        for folder in self._label_folders(image.parent):
            for name in (f"{image.name}.txt", f"{image.stem}.txt"):
                if name in self._exact[folder]:
                    return folder / name
        return None

    def _check_shared(self) -> None:
        """Record label files that belong to several images, such as `a.jpg` and `a.png`."""
        counts = Counter(self._found.values())
        shared = defaultdict(list)
        for image, file in self._found.items():
            if counts[file] > 1:
                shared[file].append(image.name)
        for file, names in shared.items():
            self._parsed.add_fault("shared-label", file, f"belongs to {' and '.join(names[:4])}")

    def _match_spellings(self, images: Sequence[Path]) -> None:
        taken, example, count = set(self._found.values()), "", 0
        for image in images:
            for folder in self._label_folders(image.parent):
                keys = dict.fromkeys(fold(unquote(name)) for name in (image.name, image.stem))
                files = [file for key in keys for file in self._names[folder].get(key, []) if file not in taken]
                if len(files) == 1:
                    self._found[image] = files[0]
                    taken.add(files[0])
                    example, count = example or f"{files[0].name!r} is for {image.name!r}", count + 1
                    break
        if count:
            what = f"{count:,} label files are spelled otherwise than their images ({example})"
            self._parsed.add_fault("found-image", self._parsed.root, what)

    def _check_unmatched(self, images: Sequence[Path]) -> None:
        """Record label files with rows that belong to no image; fatal where an image nearby has no label."""
        taken = set(self._found.values())
        users = defaultdict(list)
        for parent, folders in self._folders.items():
            for folder in folders:
                users[folder].append(parent)
        unlabelled = {folder for image in images if image not in self._found for folder in self._folders[image.parent]}
        for folder, parents in list(users.items()):  # and what is below, where images may be missing or not listed
            for below, _ in walk(folder) if folder not in self._folders else ():
                path = Path(below)
                if path not in users:
                    self._list(path)
                    likely = [any_case(parent, path.relative_to(folder)) for parent in parents]
                    users[path] = [parent for parent in likely if parent is not None]
        for folder, parents in users.items():
            spare = [file for files in self._names[folder].values() for file in files if file not in taken]
            if not spare:
                continue
            present = {fold(unquote(name)) for p in parents for f in files_in(p, IMAGE_SUFFIXES) for name in _names(f)}
            for file in sorted(spare):
                if fold(unquote(file.stem)) not in present and file.stem != "classes" and _has_rows(file):
                    kind = "unmatched-label" if folder in unlabelled or not parents else "orphan-annotation"
                    self._parsed.add_fault(kind, file, "there is no image of this name")


def _names(image: Path) -> tuple[str, str]:
    return image.stem, image.name


def _has_rows(file: Path) -> bool:
    with file.open("rb") as stream:
        return _ROW.search(stream.read(2000)) is not None

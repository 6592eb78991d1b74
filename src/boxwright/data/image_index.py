"""Find the image that an annotation names, also if the name was written on another machine.

A name is looked up in this order, and the first rule that fits counts:

1. as written, below the folder of the images;
2. without scheme, host, drive and ``%xx``, and with ``/`` for a backslash;
3. in another Unicode form (NFC) or in other capitals, if that is unique;
4. by its stem, if it has no ending of an image file;
5. by its base name, anywhere in the data set, if that is unique; where several files have it, the one whose folders
   agree with more of the name's.

What was done is one note a data set; a name that fits several files is a fault that names them.
"""

# Names are text, and folders are listed once: as `Path`s, each with a call of `is_file`, a million would take minutes.
# ruff: noqa: PTH118, PTH119, PTH120, PTH121, PTH122

from __future__ import annotations

import os
import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path
from unicodedata import normalize
from urllib.parse import unquote

from boxwright.data.folders import can_be_a_file, data_root, walk
from boxwright.data.image_table import paths_of
from boxwright.data.parsed import ParsedDataset
from boxwright.files import name_on_disk
from boxwright.images import IMAGE_SUFFIXES

_RULES = {
    "name": "without scheme, drive or %xx",
    "spelling": "in another spelling",
    "stem": "by the stem",
    "elsewhere": "in another folder",
}


class ImageIndex:
    """The image files of a data set by name. Nothing is listed before the first name that is not as written.

    Args:
        parsed: the data set; receives the faults.
        root: the folder to search; by default that of the data set.
    """

    def __init__(self, parsed: ParsedDataset, root: Path | None = None) -> None:
        self.root = root or data_root(Path(parsed.root))
        self._parsed = parsed
        self._files: _Files | None = None
        self._listed: dict[str, frozenset[str]] = {}  # the files of the folders that names lead to
        self._found: defaultdict[Path, list[tuple[str, str, str]]] = defaultdict(list)  # rule, name, where

    def find(self, name: str, folder: Path, where: object) -> Path:
        """The file of an image, or a path that does not exist, and a fault recorded.

        Args:
            name: as written in the annotation.
            folder: where the images should be; it may be missing.
            where: file and record, for the fault.
        """
        if not can_be_a_file(name):
            what = f"no file can have the name {name!r:.60}; {len(self.files()):,} images are below {self.root}"
            self._parsed.add_fault("missing-image", where, what)
            return folder / re.sub(r"[^\w.-]", "_", name, flags=re.ASCII)[:60]
        match = self.match(name, folder)
        if isinstance(match, tuple):
            rule, path = match
            if rule:
                self._found[path].append((rule, name, str(where)))
            return path
        if match:
            listed = " and ".join(self._short(path) for path in match[:3])
            self._parsed.add_fault("ambiguous-image", where, f"{name!r} may be {listed}")
        else:
            self._parsed.add_fault("missing-image", where, self._missing(name))
        return folder / name_on_disk(name).replace("\\", "/").lstrip("/")

    def match(self, name: str, folder: Path) -> tuple[str, Path] | list[Path]:
        """(rule, path) of an image, the rule empty if it is as written; else all files that fit equally, or none."""
        place, name = str(folder), name_on_disk(name)
        for text in (name, name.replace("\\", "/")) if "\\" in name else (name,):
            if (path := self.existing(os.path.join(place, text))) is not None:
                return "", path
        clean = name_on_disk(clean_name(name))
        wanted = f"{place}/{clean}"
        if clean != name and (path := self.existing(wanted)) is not None:
            return "name", path
        base = clean.rpartition("/")[2]
        has_ending = os.path.splitext(base)[1].lower() in IMAGE_SUFFIXES
        candidates = self.files().named(base) or ([] if has_ending else self.files().with_stem(base))
        best = _best(candidates, wanted, clean)
        if len(best) != 1:
            return [Path(path) for path in best]
        if not has_ending:
            return "stem", Path(best[0])
        return "spelling" if fold(best[0]) == fold(wanted) else "elsewhere", Path(best[0])

    def files(self) -> _Files:
        """All image files of the data set, listed once."""
        if self._files is None:
            self._files = _Files(self.root)
        return self._files

    def finish(self) -> None:
        """Note once what was found otherwise than as written. Call it when all splits are read.

        A file found in this way that another record names, too, is a fault: the image of one of them is missing.
        """
        if not self._found:
            return
        found = {str(path) for path in self._found}
        every = (path for images in self._parsed.splits.values() for path in paths_of(images))
        named = Counter(path for path in every if path in found)
        for path, uses in self._found.items():
            if named[str(path)] > len(uses) or len({clean_name(name) for _, name, _ in uses}) > 1:
                for _, name, where in uses:
                    what = f"{name!r} is not there; {self._short(path)}, the only file of this name, belongs to another"
                    self._parsed.add_fault("missing-image", where, f"{what} record")
        uses = [(rule, name, path) for path, uses in self._found.items() for rule, name, _ in uses]
        counts = Counter(rule for rule, _, _ in uses)
        parts = ", ".join(f"{counts[rule]:,} {words}" for rule, words in _RULES.items() if counts[rule])
        _, name, path = uses[0]
        what = f"{len(uses):,} images are found otherwise than as written: {parts} ({name!r} is {self._short(path)})"
        self._parsed.add_fault("found-image", self._parsed.root, what)
        self._found.clear()

    def holds(self, folder: str, name: str) -> bool:
        """Whether a name is that of a file as written, and simple: then its path is the two joined."""
        path = os.path.join(folder, name_on_disk(name))
        here, base = os.path.split(path)
        return "./" not in name and "\\" not in name and not name.startswith("/") and base in self._names(here)

    def forget_listings(self) -> None:
        """Free the names of all files; a folder is listed again when it is asked for. A million take 130 MB."""
        self._listed.clear()

    def names_in(self, folder: Path) -> frozenset[str]:
        """The names of all files in a folder."""
        return self._names(str(folder))

    def _names(self, folder: str) -> frozenset[str]:
        if folder not in self._listed:
            self._listed[folder] = _file_names(folder or ".")
        return self._listed[folder]

    def existing(self, path: str) -> Path | None:
        """The file of this path, without ``..`` where that makes no difference; None if there is none."""
        for text in (os.path.normpath(path), path) if "./" in path else (path,):
            folder, base = os.path.split(text)
            if base in self._names(folder):
                return Path(text)
        return None

    def _missing(self, name: str) -> str:
        what = f"{name} does not exist: it is not among the {len(self.files()):,} images below {self.root}"
        stem = os.path.splitext(clean_name(name).rpartition("/")[2])[0]
        others = self.files().with_stem(stem) if stem else []
        return f"{what}; {self._short(Path(others[0]))} has another ending" if others else what

    def _short(self, path: Path) -> str:
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)


class _Files:
    """Image files below a folder, by folded base name and by folded stem."""

    def __init__(self, root: Path) -> None:
        self._folders: list[str] = []
        self._names: list[str] = []
        self._folder_of = array("l")
        for folder, names in walk(root):
            images = [name for name in names if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES]
            self._folder_of.extend([len(self._folders)] * len(images))
            self._folders.append(folder)
            self._names += images
        self._by_name = _positions(fold(name.rpartition("\\")[2]) for name in self._names)
        self._by_stem: dict[str, int | list[int]] | None = None

    def __len__(self) -> int:
        return len(self._names)

    def named(self, base: str) -> list[str]:
        """Paths of the files of this base name, in any spelling."""
        return self._paths(self._by_name.get(fold(base)))

    def with_stem(self, stem: str) -> list[str]:
        """Paths of the files of this stem, in any spelling."""
        if self._by_stem is None:
            self._by_stem = _positions(fold(os.path.splitext(name.rpartition("\\")[2])[0]) for name in self._names)
        return self._paths(self._by_stem.get(fold(stem)))

    def _paths(self, positions: int | list[int] | None) -> list[str]:
        each = [] if positions is None else [positions] if isinstance(positions, int) else positions
        return [os.path.join(self._folders[self._folder_of[i]], self._names[i]) for i in each]


def _positions(keys: Iterable[str]) -> dict[str, int | list[int]]:
    """The position of each key; a list where it occurs several times."""
    found: dict[str, int | list[int]] = {}
    for i, key in enumerate(keys):
        before = found.setdefault(key, i)
        if isinstance(before, list):
            before.append(i)
        elif before != i:
            found[key] = [before, i]
    return found


def fold(name: str) -> str:
    """A name for comparison: NFC-normalised, without capitals."""
    return name.lower() if name.isascii() else normalize("NFC", normalize("NFC", name).casefold())


def clean_name(name: str) -> str:
    """A file name without what belongs to another machine, with ``/`` between its parts.

    >>> clean_name("C:\\\\Users\\\\me\\\\a%20b.jpg"), clean_name("http://host/train/a.jpg?size=2")
    ('Users/me/a b.jpg', 'train/a.jpg')
    """
    text = name.strip().replace("\\", "/")
    if "?" in text:  # Label Studio's local files: /data/local-files/?d=a/b.jpg
        text = re.sub(r"^.*[?&]d=([^&]+).*$", r"\1", text)
    if url := re.match(r"[a-zA-Z][\w+.-]+://[^/]*", text):
        text = re.sub(r"[?#].*$", "", text[url.end() :])
    text = re.sub(r"^/*[a-zA-Z]:", "", unquote(text)).replace("\\", "/")
    return "/".join(part for part in text.split("/") if part not in ("", ".", ".."))


def _file_names(folder: str) -> frozenset[str]:
    """The names of all files in a folder; empty if it can't be listed."""
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return frozenset()


def _best(candidates: Sequence[str], wanted: str, clean: str) -> list[str]:
    """The candidates that agree most with a name: in its place, in most of its folders, in its exact spelling."""
    if len(candidates) < 2:
        return list(candidates)
    parts = fold(clean).split("/")[-2::-1]
    base = normalize("NFC", clean.rpartition("/")[2])

    def agreement(path: str) -> tuple[bool, int, bool]:
        folders = fold(path.replace("\\", "/")).split("/")[-2::-1]
        agreeing = takewhile(lambda pair: pair[0] == pair[1], zip(parts, folders, strict=False))
        in_place = fold(os.path.dirname(path)) == fold(os.path.dirname(wanted))
        return in_place, len(list(agreeing)), normalize("NFC", os.path.basename(path)) == base

    scores = [agreement(path) for path in candidates]
    best = [path for path, score in zip(candidates, scores, strict=True) if score == max(scores)]
    return best[:1] if all(os.path.samefile(path, best[0]) for path in best) else best

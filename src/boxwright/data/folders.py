"""File and folder names of a data set, and the split that each stands for."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from boxwright.config import UserError
from boxwright.files import name_on_disk

T = TypeVar("T")

_SPLIT_WORDS = {
    "train": "train", "training": "train", "trainval": "trainval", "val": "val", "valid": "val",
    "validation": "val", "dev": "val", "test": "test", "testing": "test",
}  # fmt: skip
_ANNOTATION_WORDS = re.compile(r"^_?(instances|annotations?)_?|_?annotations?(\.coco)?$|\.coco$", re.IGNORECASE)
_CONTENT_WORDS = re.compile(
    r"(annot|anno|annotation|ann|xml|json|txt|text|label|jpegimage|image|img|photo|picture|jpe?g|png|yolo|voc|coco)s?"
)
_YEAR = re.compile(r"[_-]?(19|20)\d\d$")


def split_name(name: str) -> str | None:
    """The split that a file or folder name stands for; None for any other name.

    >>> split_name("instances_train2017"), split_name("valid"), split_name("images")
    ('train', 'val', None)
    """
    return _SPLIT_WORDS.get(_YEAR.sub("", bare_name(name)).lower())


def split_of(path: Path) -> str | None:
    """The split that the last part of a path names that names one, as a whole or by a word.

    >>> split_of(Path("train_xml/cats")), split_of(Path("cats"))
    ('train', None)
    """
    words = (word for part in reversed(path.parts) for word in (part, *re.split(r"[\W_]+", part)))
    return next((split for word in words if (split := split_name(word))), None)


def words_of(path: Path) -> tuple[str, ...]:
    """The words of a path, without those that say that images or annotations are in it.

    Where annotations are in ``annots/train``, and images in ``images/train``, the words tell which belong together.
    """
    words = (word for part in path.parts for word in re.split(r"[\W_]+", part.lower()))
    return tuple(word for word in words if word and not _CONTENT_WORDS.fullmatch(word))


def bare_name(name: str) -> str:
    """A file name without the parts that only say that it holds annotations."""
    return _ANNOTATION_WORDS.sub("", name)


def by_split(words: Sequence[str], things: Sequence[T]) -> dict[str, T]:
    """The files or folders of a data set by split name; ``all`` for a single one that does not name a split."""
    names = [split_name(word) or bare_name(word) or word for word in words]
    by_words = [split_of(Path(word)) for word in words]
    if len(words) == 1:
        names = [split_name(words[0]) or "all"]
    elif all(by_words) and len(set(by_words)) == len(words):  # coco_train.json, coco_val.json
        names = [name for name in by_words if name]
    elif len(set(names)) < len(names):
        names = list(words)
    return in_order(dict(zip(names, things, strict=True)))


def in_order(splits: dict[str, T]) -> dict[str, T]:
    """The splits in the order train, val, test, others."""
    first = [name for name in ("train", "val", "trainval", "test") if name in splits]
    return {name: splits[name] for name in [*first, *(name for name in splits if name not in first)]}


def subfolders(folder: Path) -> list[Path]:
    """Folders inside, sorted, hidden ones left out."""
    return [Path(entry.path) for entry in _entries(str(folder)) if _is(entry, os.DirEntry.is_dir)]


def files_in(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """Files directly inside with one of the suffixes (lower case), sorted; [] when the folder is missing.

    FIFOs, sockets and devices, and links to them, are no files.
    """
    if not folder.is_dir():
        return []
    wanted = frozenset(suffixes)
    entries = [entry for entry in _entries(str(folder)) if suffix_of(entry.name) in wanted]
    return [folder / entry.name for entry in entries if _is(entry, os.DirEntry.is_file)]


def _is(entry: os.DirEntry[str], kind: Callable[[os.DirEntry[str]], bool]) -> bool:
    """Whether it is a folder or a file; False for a link to itself."""
    try:
        return kind(entry)
    except OSError:
        return False


def any_case(folder: Path, path: Path) -> Path | None:
    """A path below a folder, in other capitals where that is unique; None if there is no such file or folder."""
    if not can_be_a_file(str(path)):
        return None
    for part in path.parts:
        if not (folder / part).exists() and part != "..":
            alike = [p.name for p in folder.iterdir() if p.name.lower() == part.lower()] if folder.is_dir() else []
            if len(alike) != 1:
                return None
            part = alike[0]
        folder = folder / part
    return folder


def suffix_of(name: str) -> str:
    """The ending of a file's name in lower case, as `Path.suffix` has it, without making a path.

    >>> suffix_of("a.JPG"), suffix_of("README")
    ('.jpg', '')
    """
    stem, dot, ending = name.rpartition(".")
    return f".{ending}".lower() if stem and dot else ""


def can_be_a_file(name: str) -> bool:
    """Whether each part of a path is short enough for a file system, and can be encoded for it."""
    try:
        encoded = os.fsencode(name_on_disk(name))
    except UnicodeEncodeError:
        return False
    parts = encoded.replace(b"\\", b"/").split(b"/")
    return b"\0" not in encoded and len(encoded) < 2000 and all(len(part) < 250 for part in parts)


def real_paths(paths: Iterable[str]) -> Iterator[str]:
    """Each path without links. Folders are listed once, so that a million paths cost no million calls."""
    folders: dict[str, tuple[str, frozenset[str]]] = {}
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder), _links_in(folder)
        real, links = folders[folder]
        yield os.path.realpath(path) if name in links else os.path.join(real, name)  # noqa: PTH118


def _links_in(folder: str) -> frozenset[str]:
    try:
        with os.scandir(folder or ".") as entries:
            return frozenset(entry.name for entry in entries if entry.is_symlink())
    except OSError:
        return frozenset()


def data_root(path: Path) -> Path:
    """The folder to search for the images of a data set that a file or folder names."""
    folder = path.parent if path.is_file() else path
    holds_annotations = folder.name.lower() in ("annotations", "annotation", "labels")
    return folder.parent if path.is_file() and holds_annotations else folder


def walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Each folder from `folder` down with the names of its files, sorted; hidden ones left out.

    Links to folders are followed after all others, each folder once, and never up to one that holds `folder`.

    Raises:
        UserError: a folder can't be read.
    """
    seen = {_identity(parent) for parent in folder.resolve().parents}
    waiting, links = deque([str(folder)]), deque[str]()
    while waiting or links:
        here = waiting.popleft() if waiting else links.popleft()
        if (identity := _identity(here)) in seen:
            continue
        seen.add(identity)
        names = []
        for entry in _entries(here):
            if _is(entry, os.DirEntry.is_dir):
                (links if entry.is_symlink() else waiting).append(entry.path)
            elif _is(entry, os.DirEntry.is_file):
                names.append(entry.name)
        yield here, names


def _identity(folder: Path | str) -> tuple[int, int]:
    status = Path(folder).stat()
    return status.st_dev, status.st_ino


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """What is in a folder, sorted; hidden files, and those of macOS' archives, left out."""
    try:
        with os.scandir(folder) as entries:
            visible = [e for e in entries if not e.name.startswith(".") and e.name != "__MACOSX"]
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}); allow it or move it away") from error
    return sorted(visible, key=lambda entry: entry.name)

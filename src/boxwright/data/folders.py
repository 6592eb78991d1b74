"""File and folder names of a data set, and the split that each stands for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_SPLIT_WORDS = {
    "train": "train", "training": "train", "trainval": "trainval", "val": "val", "valid": "val",
    "validation": "val", "dev": "val", "test": "test", "testing": "test",
}  # fmt: skip
_ANNOTATION_WORDS = re.compile(r"^_?(instances|annotations?)_?|_?annotations?(\.coco)?$|\.coco$", re.IGNORECASE)
_YEAR = re.compile(r"[_-]?(19|20)\d\d$")


def split_name(name: str) -> str | None:
    """The split that a file or folder name stands for; None for any other name.

    >>> split_name("instances_train2017"), split_name("valid"), split_name("images")
    ('train', 'val', None)
    """
    return _SPLIT_WORDS.get(_YEAR.sub("", bare_name(name)).lower())


def bare_name(name: str) -> str:
    """A file name without the parts that only say that it holds annotations."""
    return _ANNOTATION_WORDS.sub("", name)


def by_split(words: Sequence[str], things: Sequence[T]) -> dict[str, T]:
    """The files or folders of a data set by split name; ``all`` for a single one that does not name a split."""
    names = [split_name(word) or bare_name(word) or word for word in words]
    if len(words) == 1:
        names = [split_name(words[0]) or "all"]
    elif len(set(names)) < len(names):
        names = list(words)
    return in_order(dict(zip(names, things, strict=True)))


def in_order(splits: dict[str, T]) -> dict[str, T]:
    """The splits in the order train, val, test, others."""
    first = [name for name in ("train", "val", "trainval", "test") if name in splits]
    return {name: splits[name] for name in [*first, *(name for name in splits if name not in first)]}


def subfolders(folder: Path) -> list[Path]:
    """Folders inside, sorted, hidden ones left out."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def files_in(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """Files directly inside with one of the suffixes (lower case), sorted; [] when the folder is missing."""
    if not folder.is_dir():
        return []
    wanted = frozenset(suffixes)
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in wanted and not p.name.startswith("."))

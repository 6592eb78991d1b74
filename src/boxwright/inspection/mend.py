"""Mend a data set as far as no decision is needed, for the copy that `boxwright check --fix` writes.

What can be mended in one way only: images that are not there or can't be decoded are left out; boxes are cut to their
image; boxes without area or with a coordinate that is no number are removed, and so is a box that is in the file twice,
number by number; control characters in class names become spaces. Everything else is a person's to decide.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

from boxwright.classes import is_printable
from boxwright.config import UserError, require
from boxwright.data.archives import is_archive
from boxwright.data.convert import FOLDERS, write_dataset
from boxwright.data.faults import Fault
from boxwright.data.folders import data_root
from boxwright.data.parsed import ParsedDataset, ParsedImage, to_dataset

_MENDED = ("missing-image", "undecodable-image", "control-character")


@dataclass(frozen=True)
class Change:
    """What was done: where, and what, as half a sentence."""

    where: str
    what: str


def require_apart(out: Path, data: Path) -> None:
    """Check that a folder for a copy is new or empty, and neither inside the data set nor around it.

    Raises:
        UserError: it is not.
    """
    taken = out.is_file() or (out.is_dir() and any(out.iterdir()))
    require(not taken, f"{out} exists and is not empty; give the name of a new folder")
    root, target = (data if is_archive(data) else data_root(data)).resolve(), out.resolve()
    apart = not target.is_relative_to(root) and not root.is_relative_to(target)
    require(apart, f"{out} is in the data set {data}, or around it; give the name of a folder elsewhere")


def write_mended(parsed: ParsedDataset, faults: list[Fault], out: Path) -> list[Change]:
    """Write a corrected copy of a data set, whole or not at all; images are copied, not linked.

    It has the format of the data set, or COCO where boxwright does not write that one: images, boxes, classes and
    flags to ignore, as `convert` writes them.

    Args:
        parsed: the data set; it is not changed.
        faults: what `examine` found.
        out: a new folder; see `require_apart`.

    Returns:
        What was done.

    Raises:
        UserError: faults are left that nobody can decide about but a person, or `out` can't be written.
    """
    mended, changes = _mend(parsed, faults)
    left = [fault for fault in faults if fault.fatal and fault.kind not in _MENDED]
    try:
        dataset, _ = to_dataset(replace(mended, faults=left), empty_boxes=True)
    except UserError as error:
        raise UserError(f"no mended copy is written, since a person must decide: {error}") from error
    write_dataset(dataset, out, parsed.format if parsed.format in FOLDERS else "coco", copy=True)
    return changes


def _mend(parsed: ParsedDataset, faults: list[Fault]) -> tuple[ParsedDataset, list[Change]]:
    """The mended data set, and what was done."""
    orphans = [fault for fault in faults if fault.kind == "orphan-annotation"]
    changes = [Change(fault.where, f"left out: {fault.what}") for fault in orphans]
    names = _clean_names(parsed, changes)
    lost = {fault.where for fault in faults if fault.kind == "undecodable-image"}
    splits = {}
    for split, images in parsed.splits.items():
        kept = []
        for image in images:
            if str(image.path) in lost or not image.path.is_file():
                what = "cannot be decoded" if image.path.is_file() else "is missing"
                changes.append(Change(image.source, f"left out: the image {image.path.name} {what}"))
            else:
                kept.append(_mend_image(image, names, changes))
        splits[split] = kept
    return replace(parsed, names=names, splits={split: images for split, images in splits.items() if images}), changes


def _clean_names(parsed: ParsedDataset, changes: list[Change]) -> tuple[str, ...]:
    """The class names with spaces for control characters.

    Raises:
        UserError: a name has nothing else, or becomes that of another class.
    """
    names = tuple(name if is_printable(name) else _clean(name) for name in parsed.names)
    for old, new in zip(parsed.names, names, strict=True):
        if old != new:
            unique = new and names.count(new) == 1
            require(unique, f"{parsed.root}: the class {old!r} has a control character; give it a name by hand")
            changes.append(Change(str(parsed.root), f"the class {old!r} is now {new!r}"))
    return names


def _clean(name: str) -> str:
    return " ".join("".join(c if is_printable(c) else " " for c in name).split())


def _mend_image(image: ParsedImage, names: tuple[str, ...], changes: list[Change]) -> ParsedImage:
    mended = replace(image, boxes=[], labels=[], ignore=[], marks=[])
    seen: set[tuple[object, ...]] = set()
    for i, box in enumerate(_boxes(image)):
        cut, what = _cut(box, image.width, image.height)
        key = (cut, int(image.labels[i]), bool(image.ignore[i]))
        if cut is not None and key in seen:
            cut, what = None, "removed: the same box is there before it"
        seen.add(key)
        if what:
            changes.append(Change(image.where(i), f"{names[image.labels[i]]} {_text(box)} is {what}"))
        if cut is not None:
            mended.add(cut, int(image.labels[i]), bool(image.ignore[i]), image.marks[i])
    return mended


def _boxes(image: ParsedImage) -> Iterator[tuple[float, float, float, float]]:
    for x1, y1, x2, y2 in image.boxes:
        yield float(x1), float(y1), float(x2), float(y2)


def _cut(box: tuple[float, ...], width: int, height: int) -> tuple[tuple[float, float, float, float] | None, str]:
    """The box inside the image, and what was done to it; None if it is removed. A reversed one stays."""
    x1, y1, x2, y2 = box
    if not all(map(isfinite, box)):
        return None, "removed: a coordinate is no number"
    if x2 < x1 or y2 < y1:
        return (x1, y1, x2, y2), ""
    cut = min(max(x1, 0.0), width), min(max(y1, 0.0), height), min(x2, width), min(y2, height)
    if cut[2] <= cut[0] or cut[3] <= cut[1]:
        return None, "removed: it has no area" if x2 == x1 or y2 == y1 else "removed: it lies outside the image"
    return cut, f"cut to {_text(cut)}" if cut != (x1, y1, x2, y2) else ""


def _text(box: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in box) + ")"

"""The page of `boxwright check --out`: one HTML file with its pictures inside, which loads nothing."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from boxwright.data.check import CheckReport, verdict
from boxwright.data.faults import FAULT_KINDS, Fault
from boxwright.data.parsed import ParsedDataset, ParsedImage
from boxwright.files import name_of
from boxwright.inspection import alike, statistics
from boxwright.inspection.pictures import Picture, draw, heat
from boxwright.visualization import html

_PER_KIND = 8  # pictures of faults of one kind
_LISTED = 200  # faults of one kind that are listed
_SHOWN = 6  # images with the most boxes, oddest boxes, heat maps of classes
_PAIRS = 12  # groups of images that are alike


@dataclass(frozen=True)
class FaultGroup:
    """The faults of one kind: all of them counted, the first ones listed, and some shown."""

    kind: str
    level: str
    fix: str
    count: int
    listed: list[str]
    pictures: list[Picture]


@dataclass(frozen=True)
class AlikeGroup:
    """Images of several splits that look alike: how many of each split, and the first of each."""

    counts: dict[str, int]
    pictures: list[Picture]


def write_page(path: Path, parsed: ParsedDataset, report: CheckReport) -> None:
    """Write the page, whole or not at all.

    Args:
        path: the HTML file.
        parsed: the data set.
        report: what `examine` found in it.

    Raises:
        UserError: the page can't be written.
    """
    boxes = statistics.collect(parsed)
    frequent = sorted(report.classes, key=lambda name: -report.classes[name]["boxes"])[:_SHOWN]
    frequent = [name for name in frequent if report.classes[name]["boxes"]]
    maps = [heat(statistics.heat_map(boxes), "all classes")] if len(boxes.labels_N) else []
    if len(frequent) > 1:
        maps += [heat(statistics.heat_map(boxes, parsed.names.index(name)), name) for name in frequent]
    across, inside = _alike(parsed, boxes)
    html.write_page(
        path,
        "inspection/page.html",
        title=f"Data set {_title(report.data)}",
        command=f"boxwright check {shlex.quote(str(report.data))} --out {shlex.quote(str(path))}",
        report=report,
        verdict=verdict(report),
        tiles=_tiles(report),
        most_boxes=max((row["boxes"] for row in report.classes.values()), default=0) or 1,
        histograms=statistics.histograms(boxes),
        heat_maps=maps,
        across=across[:_PAIRS],
        n_across=len(across),
        n_inside=inside,
        n_same=sum(fault.kind == "shared-image" for fault in report.faults),
        fullest=_fullest(boxes, parsed.names),
        oddest=_oddest(boxes, parsed.names, f"{report.data}/"),
        groups=_fault_groups(parsed, report.faults, f"{report.data}/"),
    )


def _tiles(report: CheckReport) -> list[tuple[str, str, str]]:
    images, boxes, background = (sum(row[key] for row in report.splits.values()) for key in _TOTALS)
    return [
        (f"{images:,}", "images", f"{background:,} without objects"),
        (f"{boxes:,}", "boxes", f"{boxes / images:.1f} per image" if images else "none"),
        (f"{len(report.classes):,}", "classes", f"format {report.format}"),
        (f"{report.count('error'):,}", "errors", "certain"),
        (f"{report.count('warning'):,}", "warnings", "look once"),
        (f"{report.count('note'):,}", "notes", "nothing to do"),
    ]


_TOTALS = ("images", "boxes", "background")


def _alike(parsed: ParsedDataset, boxes: statistics.Boxes) -> tuple[list[AlikeGroup], int]:
    """Groups of images that look alike and lie in several splits, and the number of those inside one split."""
    splits, ends = list(parsed.splits), np.cumsum([len(images) for images in parsed.splits.values()])
    paths = (image.path for images in parsed.splits.values() for image in images)
    across, inside = [], 0
    for group in alike.groups(alike.thumbnails(paths, int(ends[-1]) if splits else 0)):
        number_of_split = np.searchsorted(ends, group, side="right")
        used, first, counts = np.unique(number_of_split, return_index=True, return_counts=True)
        if len(used) < 2:
            inside += 1
            continue
        pictures = []
        if len(across) < _PAIRS:
            for split, position in zip(used.tolist(), group[first].tolist(), strict=True):
                image = boxes.image(position)
                pictures.append(draw(image, parsed.names, f"{splits[split]}: {image.path.name}"))
        named = {splits[split]: count for split, count in zip(used.tolist(), counts.tolist(), strict=True)}
        across.append(AlikeGroup(named, [picture for picture in pictures if picture is not None]))
    return across, inside


def _fullest(boxes: statistics.Boxes, names: Sequence[str]) -> list[Picture]:
    images = [boxes.image(i) for i in statistics.most_objects(boxes, _SHOWN)]
    drawn = [draw(image, names, f"{len(image.labels):,} boxes: {image.path.name}") for image in images]
    return [picture for picture in drawn if picture is not None]


def _oddest(boxes: statistics.Boxes, names: Sequence[str], root: str) -> list[Picture]:
    pictures = []
    for i, score in statistics.oddest(boxes, _SHOWN):
        image, (width, height) = boxes.image(int(boxes.image_N[i])), boxes.sizes[i]
        name, number = names[boxes.labels_N[i]], int(boxes.object_N[i])
        where = image.where(number).replace(root, "")
        caption = f"{name}, {width:.0f} x {height:.0f} px, {score:.0f} deviations: {where}"
        picture = draw(image, names, caption, number)
        pictures += [] if picture is None else [picture]
    return pictures


def _fault_groups(parsed: ParsedDataset, faults: Sequence[Fault], root: str) -> list[FaultGroup]:
    """The faults by kind, errors first, with pictures of those that have one; places without the part `root`."""
    by_kind: dict[str, list[Fault]] = {}
    for fault in faults:
        by_kind.setdefault(fault.kind, []).append(fault)
    places = _places(parsed, {fault.where for each in by_kind.values() for fault in each[:_LISTED]})
    result = []
    for kind, each in by_kind.items():
        pictures: list[Picture] = []
        for fault in each[:_LISTED]:
            if fault.where in places and len(pictures) < _PER_KIND:
                image, chosen = places[fault.where]
                picture = draw(image, parsed.names, f"{fault.where}: {fault.what}".replace(root, ""), chosen)
                pictures += [] if picture is None else [picture]
        entry = FAULT_KINDS[kind]
        listed = [f"{fault.where}: {fault.what}".replace(root, "") for fault in each[:_LISTED]]
        result.append(FaultGroup(kind, entry.level, entry.fix, len(each), listed, pictures))
    return result


def _places(parsed: ParsedDataset, wanted: set[str]) -> dict[str, tuple[ParsedImage, int | None]]:
    """The image, and the object in it, that each of these places of faults names."""
    found: dict[str, tuple[ParsedImage, int | None]] = {}
    for image in (image for images in parsed.splits.values() for image in images):
        for where in (str(image.path), image.source):
            if where in wanted:
                found.setdefault(where, (image, None))
        for i in range(len(image.labels)):
            if (where := image.where(i)) in wanted:
                found.setdefault(where, (image, i))
    return found


def _title(data: Path | str) -> str:
    """The name of the data set's folder or file."""
    return name_of(data.resolve() if isinstance(data, Path) else data)

"""All faults of a data set in one report."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.progress import track
from rich.table import Table
from rich.text import Text

from boxwright.config import UserError
from boxwright.console import make_console
from boxwright.data.box_faults import box_faults, parts
from boxwright.data.columns import counts_by_key, label_counts, usable
from boxwright.data.faults import FAULT_KINDS, Fault
from boxwright.data.folders import real_paths
from boxwright.data.image_table import columns_of, paths_of
from boxwright.data.parsed import ParsedDataset, ParsedImage, empty_faults, printable, reason, to_dataset
from boxwright.data.read import TRAIN_SPLITS
from boxwright.data.split import split as hold_out
from boxwright.images import open_image, same_shape
from boxwright.threads import map_ahead

SMALL, LARGE = 32**2, 96**2  # COCO's limits of area, in square pixels
_NOT_TRAINABLE = {
    "nothing-to-learn": "some objects count",
    "no-held-out": "the split `val` has images of its own",
    "too-few-objects": "more images have objects, or --val-data gives others",
    "no-train-split": "one of its splits is called `train`",
}
LISTED = 20  # copies of one picture that are named; the others are counted
_HASH_BYTES = 16  # of the pixels of an image
FEW = 1000  # images of which it is tried out whether some with objects can be held out
HELD_OUT = 0.2  # as in `train`
_SHORTEST, _GAP = 8, 3  # characters of a class name in a table before it is split in two; between two columns
AHEAD = 64  # images that are decoded or waiting
_VALIDATE = "It has no split val: train holds a fifth of the training images out; --val or --val-data change that."
_STYLES = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan"}


@dataclass(frozen=True)
class CheckReport:
    """What `check` found.

    Attributes:
        data: as the user named it.
        format: ``coco``, ``voc`` or ``yolo``.
        faults: errors, then warnings, then notes.
        splits: by split, the number of ``images``, of those without objects (``background``), of ``boxes`` and of
            ``ignored`` ones among them.
        classes: by class, the number of ``images``, ``boxes``, ``ignored``, ``small``, ``medium`` and ``large`` boxes
            (COCO's limits, 32 and 96 pixels squared), and ``in``, the boxes of each split.
    """

    data: Path | str
    format: str
    faults: list[Fault]
    splits: dict[str, dict[str, int]]
    classes: dict[str, dict[str, Any]]

    def count(self, level: str) -> int:
        """How many faults of a level there are."""
        return sum(fault.level == level for fault in self.faults)

    @property
    def exit_code(self) -> int:
        """1 when there is any error, else 0; warnings and notes do not count."""
        return int(self.count("error") > 0)

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return {
            "data": str(self.data),
            "format": self.format,
            "errors": self.count("error"),
            "warnings": self.count("warning"),
            "notes": self.count("note"),
            "splits": self.splits,
            "classes": self.classes,
            "faults": [
                {"level": f.level, "kind": f.kind, "where": f.where, "what": f.what, "mend": f.fix, "fatal": f.fatal}
                for f in self.faults
            ],
        }


def examine(parsed: ParsedDataset, data: Path | str) -> CheckReport:
    """Decode every image of a data set, and report all its faults.

    Args:
        parsed: as a reader returns it.
        data: as the user named it.
    """
    faults = [
        *parsed.faults,
        *image_faults(parsed),
        *box_faults(parsed),
        *_class_faults(parsed),
        *([] if any(fault.fatal for fault in parsed.faults) else empty_faults(parsed)),
        *_learning_faults(parsed),
        *_ignored_objects(parsed),
        *_untrained_classes(parsed),
    ]
    faults = sorted(dict.fromkeys(faults), key=lambda fault: list(FAULT_KINDS).index(fault.kind))
    return CheckReport(data, parsed.format, faults, _split_counts(parsed), _class_counts(parsed))


# Images.


def image_faults(parsed: ParsedDataset) -> Iterator[Fault]:
    """Decode every image; compare sizes with the annotations; find images that occur twice."""
    console, known = make_console(stderr=True), {f.where for f in parsed.faults if f.kind == "undecodable-image"}
    contents = {split: bytearray(_HASH_BYTES * len(images)) for split, images in parsed.splits.items()}
    total = sum(map(len, parsed.splits.values()))
    everywhere = ((split, i, image) for split, images in parsed.splits.items() for i, image in enumerate(images))
    done = map_ahead(ThreadPoolExecutor(), _decode, everywhere, AHEAD)
    for split, i, image, result in track(done, "decoding", total, console=console, transient=True):
        if isinstance(result, str):
            if str(image.path) not in known:
                known.add(str(image.path))
                yield Fault("undecodable-image", str(image.path), result)
        elif result is not None:
            (width, height), content = result
            contents[split][_HASH_BYTES * i : _HASH_BYTES * (i + 1)] = content
            if (image.width, image.height) != (width, height):
                annotated = f"{image.width} x {image.height}"
                kind = "wrong-size" if same_shape(result[0], (image.width, image.height)) else "wrong-shape"
                yield Fault(kind, image.source, f"says {annotated} pixels, {image.path.name} has {width} x {height}")
    yield from _duplicate_images(parsed, contents)


def _decode(
    found: tuple[str, int, ParsedImage],
) -> tuple[str, int, ParsedImage, tuple[tuple[int, int], bytes] | str | None]:
    """The same, with (width, height) and a hash of size and pixels, or what is wrong with the file; None if missing."""
    split, i, image = found
    try:
        pixels = open_image(image.path)
    except UserError as error:
        return split, i, image, reason(error, image.path) if image.path.is_file() else None
    content = hashlib.blake2b(str(pixels.size).encode() + pixels.tobytes(), digest_size=_HASH_BYTES).digest()
    return split, i, image, (pixels.size, content)


def _duplicate_images(parsed: ParsedDataset, contents: dict[str, bytearray]) -> Iterator[Fault]:
    """The same picture twice.

    Args:
        parsed: the data set.
        contents: by split, the hash of each image; zeros for those without.
    """
    for (first_split, first), *others in _same_pictures(contents):
        path = parsed.splits[first_split][first].path
        for split, i in others[:LISTED]:
            where = str(parsed.splits[split][i].path)
            if split != first_split:
                what = f"of split {split!r} is the same picture as {path} of split {first_split!r}"
                yield Fault("shared-image", where, what)
            else:
                yield Fault("duplicate-image", where, f"is the same picture as {path}")
        rest = Counter("duplicate" if split == first_split else "shared" for split, _ in others[LISTED:])
        for kind, count in rest.items():
            yield Fault(f"{kind}-image", str(path), f"is the same picture as {count:,} more")


def _same_pictures(contents: dict[str, bytearray]) -> Iterator[list[tuple[str, int]]]:
    """Groups of images with the same hash, as (split, position), in the order of their first ones."""
    hashes_I2 = np.frombuffer(b"".join(contents.values()), np.uint64).reshape(-1, 2)
    order = np.flatnonzero(hashes_I2.any(1))
    order = order[np.lexsort((hashes_I2[order, 1], hashes_I2[order, 0]))]  # stable
    changes = np.flatnonzero((hashes_I2[order[1:]] != hashes_I2[order[:-1]]).any(1)) + 1
    starts, stops = np.append(0, changes), np.append(changes, len(order))
    groups = [order[starts[k] : stops[k]] for k in np.flatnonzero(stops - starts > 1).tolist()]
    counts = np.array([len(content) // _HASH_BYTES for content in contents.values()])
    ends = np.cumsum(counts)
    first_I = ends - counts
    for group in sorted(groups, key=lambda rows: int(rows[0])):
        splits = np.searchsorted(ends, group, side="right")
        places = (group - first_I[splits]).tolist()
        yield [(list(contents)[k], i) for k, i in zip(splits.tolist(), places, strict=True)]


# Classes.


def _class_faults(parsed: ParsedDataset) -> Iterator[Fault]:
    alike: dict[str, list[str]] = defaultdict(list)
    for name in parsed.names:
        alike["".join(filter(str.isalnum, name.casefold())) or name].append(name)
    for group in alike.values():
        if len(set(group)) > 1:
            yield Fault(
                "similar-classes", str(parsed.root), f"the classes {' and '.join(map(repr, group))} differ little"
            )
    used_K = sum((count for count, _ in _label_counts(parsed).values()), np.zeros(len(parsed.names), np.int64))
    unused = [name for name, count in zip(parsed.names, used_K, strict=True) if not count]
    if unused:
        listed = ", ".join(map(repr, unused[:10])) + (f" and {len(unused) - 10} more" if len(unused) > 10 else "")
        yield Fault("unused-class", str(parsed.root), f"no object has the class {listed}")


def _learning_faults(parsed: ParsedDataset) -> Iterator[Fault]:
    """What keeps training from beginning: no training split, splits without an object, the same images in both."""
    train = next((split for split in TRAIN_SPLITS if split in parsed.splits), None)
    if parsed.splits and train is None:
        listed = ", ".join(parsed.splits)
        yield Fault("no-train-split", str(parsed.root), f"has no split `train`, only {listed}")
    for split in (train, "val"):
        images = parsed.splits.get(split or "", [])
        if images and not _has_object(images):
            what = f"none of the {len(images):,} images of split {split!r} has an object that counts"
            yield Fault("nothing-to-learn", str(parsed.root), what)
    if train and "val" not in parsed.splits and len(parsed.splits[train]) <= FEW:
        yield from _held_out_faults(parsed, train)
    held_out = set(real_paths(paths_of(parsed.splits.get("val", []))))
    if train and held_out and not held_out.difference(real_paths(paths_of(parsed.splits[train]))):
        yield Fault("no-held-out", str(parsed.root), f"every image of split 'val' is one of split {train!r}, too")


def _held_out_faults(parsed: ParsedDataset, train: str) -> Iterator[Fault]:
    """That so few images have objects that none of those has one which `train` holds out, or none of the others."""
    if not _has_object(parsed.splits[train]) or any(fault.fatal for fault in parsed.faults):
        return
    records = to_dataset(parsed)[0].splits[train]
    what = "there is one image, which can't be trained on and held out"
    if len(records) > 1:
        for part, few in zip(("trained on", "held out"), hold_out(records, HELD_OUT), strict=True):
            if not label_counts(few, len(parsed.names)).any():
                what = f"none of the {len(few)} images that are {part} has an object"
                break
        else:
            return
    yield Fault("too-few-objects", str(parsed.root), f"{what}, if {HELD_OUT} of split {train!r} are held out")


def _ignored_objects(parsed: ParsedDataset) -> Iterator[Fault]:
    """Classes with objects that are ignored."""
    objects, ignored = Counter[int](), Counter[int]()
    for objects_K, ignored_K in _label_counts(parsed).values():
        objects.update({k: n for k, n in enumerate(objects_K.tolist()) if n})
        ignored.update({k: n for k, n in enumerate(ignored_K.tolist()) if n})
    counts = [f"{ignored[i]:,} of {n:,} {parsed.names[i]!r}" for i, n in sorted(objects.items()) if ignored[i] == n]
    if parsed.format == "coco":  # in VOC, difficult objects beside others are usual
        counts = [f"{n:,} of {objects[i]:,} {parsed.names[i]!r}" for i, n in sorted(ignored.items())]
    if counts:
        flag = "`iscrowd` or `difficult`" if parsed.format == "coco" else "`difficult`"
        more = f" and more, of {len(counts)} classes" if len(counts) > 8 else ""
        yield Fault("ignored-object", str(parsed.root), f"{flag} is set on {', '.join(counts[:8])}{more}")


def _untrained_classes(parsed: ParsedDataset) -> Iterator[Fault]:
    """Classes that have objects, but none in the images for training."""
    train = next((split for split in TRAIN_SPLITS if split in parsed.splits), None)
    counts = {split: count for split, (count, _) in _label_counts(parsed).items()}
    for label, name in enumerate(parsed.names):
        others = {split: count[label] for split, count in counts.items() if split != train and count[label]}
        if train is not None and others and not counts[train][label]:
            listed = " and ".join(f"{count:,} in split {split!r}" for split, count in others.items())
            what = f"no training image has an object of the class {name!r}; there are {listed}"
            yield Fault("untrained-class", str(parsed.root), what)


def _label_counts(parsed: ParsedDataset) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """How many objects of each class a split has, and how many of them are ignored, each (K,)."""
    counts = {}
    for split, images in parsed.splits.items():
        _, objects = columns_of(images)
        ignored_K = np.bincount(objects.labels_M[objects.ignore_M], minlength=len(parsed.names))
        counts[split] = counts_by_key(objects.labels_M, len(parsed.names)), ignored_K
    return counts


def _has_object(images: Sequence[ParsedImage]) -> bool:
    sizes_I2, objects = columns_of(images)
    usable_M = (usable(objects.boxes_M4[part], sizes_I2[image_N]) for part, image_N in parts(objects))
    return any((fine & ~objects.ignore_M[part]).any() for fine, (part, _) in zip(usable_M, parts(objects), strict=True))


def _split_counts(parsed: ParsedDataset) -> dict[str, dict[str, int]]:
    counts = {}
    for split, images in parsed.splits.items():
        _, objects = columns_of(images)
        counts[split] = {
            "images": len(images),
            "background": int((np.diff(objects.starts) == 0).sum()),
            "boxes": len(objects.labels_M),
            "ignored": int(objects.ignore_M.sum()),
        }
    return counts


def _class_counts(parsed: ParsedDataset) -> dict[str, dict[str, Any]]:
    classes = len(parsed.names)
    rows_6K, in_SK = np.zeros((6, classes), np.int64), {split: np.zeros(classes, np.int64) for split in parsed.splits}
    for split, images in parsed.splits.items():
        _, objects = columns_of(images)
        for part, image_N in parts(objects):
            labels_N, boxes_N4 = objects.labels_M[part], objects.boxes_M4[part]
            with np.errstate(invalid="ignore"):
                area_N = (boxes_N4[:, 2:] - boxes_N4[:, :2]).clip(0).prod(1)
            small_N, large_N = area_N < SMALL, ~(area_N < LARGE)
            kinds = (np.ones_like(small_N), objects.ignore_M[part], small_N, ~small_N & ~large_N, large_N)
            pairs = np.unique(image_N * np.int64(classes) + labels_N)
            rows_6K[0] += np.bincount(pairs % max(1, classes), minlength=classes)
            for row_K, kind_N in zip(rows_6K[1:], kinds, strict=True):
                row_K += np.bincount(labels_N[kind_N], minlength=classes)
            in_SK[split] += np.bincount(labels_N, minlength=classes)
    columns = ("images", "boxes", "ignored", "small", "medium", "large")
    return {
        name: {
            **dict(zip(columns, rows_6K[:, k].tolist(), strict=True)),
            "in": {split: int(count_K[k]) for split, count_K in in_SK.items()},
        }
        for k, name in enumerate(parsed.names)
    }


# The report.


def show(report: CheckReport) -> None:
    """Print the report."""
    console = make_console()
    console.print(Text(f"{report.data} ({report.format})", style="bold"))
    console.print(_split_table(report), soft_wrap=False)
    for table in _class_tables(report, console.width):
        console.print(table, soft_wrap=False)
    kinds = Counter(fault.kind for fault in report.faults)
    for kind, count in kinds.items():
        level = FAULT_KINDS[kind].level
        console.print()
        console.print(Text.assemble((f"{level}: {kind}", _STYLES[level]), f" ({count}): {FAULT_KINDS[kind].fix}"))
        for fault in report.faults:
            if fault.kind == kind:
                console.print(Text(printable(f"  {fault.where}: {fault.what}")))
    console.print()
    console.print(Text(verdict(report), style=_verdict_style(report)))


def verdict(report: CheckReport) -> str:
    """The report in one line: how many faults, and whether the data can be trained on."""
    counted = ", ".join(f"{n} {level}{'s' * (n != 1)}" for level in _STYLES for n in [report.count(level)])
    if until := _refused_until(report):
        return f"{counted}. Training will refuse this data set until {until}."
    hint = "" if "val" in report.splits else f" {_VALIDATE}"
    if report.count("error"):
        return f"{counted}. Training leaves out boxes without area and cuts the others to the image.{hint}"
    return f"{counted}. Ready to train on.{hint}"


def _refused_until(report: CheckReport) -> str:
    """What must change before the data can be trained on; empty if they can be."""
    if any(fault.fatal for fault in report.faults):
        return "the errors are fixed"
    found = {fault.kind for fault in report.faults}
    return next((until for kind, until in _NOT_TRAINABLE.items() if kind in found), "")


def _verdict_style(report: CheckReport) -> str:
    return "bold red" if _refused_until(report) else "yellow" if report.count("error") else "green"


def _split_table(report: CheckReport) -> Table:
    table = _table("split", ("images", "background", "boxes", "ignored"))
    for split, row in report.splits.items():
        table.add_row(split, *(f"{value:,}" for value in row.values()))
    return table


def _class_tables(report: CheckReport, width: int) -> list[Table]:
    """The objects of each class, by size and by split: one table, or two where `width` is too small."""
    columns = ["images", "boxes", "ignored", "small", "medium", "large"]
    splits = list(report.splits) if len(report.splits) > 1 else []
    rows = {
        name: [f"{n:,}" for n in (*(row[c] for c in columns), *(row["in"][split] for split in splits))]
        for name, row in report.classes.items()
    }
    head = [*columns, *splits]
    longest = [max(map(len, column)) for column in zip(head, *rows.values(), strict=True)]
    parts = [slice(None)]
    if splits and _SHORTEST + sum(length + _GAP for length in longest) > width:
        parts = [slice(len(columns)), slice(len(columns), None)]
    return [_class_table(head[part], {name: row[part] for name, row in rows.items()}) for part in parts]


def _class_table(head: list[str], rows: dict[str, list[str]]) -> Table:
    table = _table("class", head)
    for name, row in rows.items():
        table.add_row(Text(printable(name)), *row)
    return table


def _table(first: str, numbers: Iterable[str]) -> Table:
    """A table of names and numbers; where it is too wide, the names are folded, never the numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table

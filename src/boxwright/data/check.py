"""All faults of a data set in one report."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
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
from boxwright.data.faults import FAULT_KINDS, Fault
from boxwright.data.parsed import ParsedDataset, ParsedImage, empty_faults, is_usable, printable, reason
from boxwright.data.read import TRAIN_SPLITS
from boxwright.images import open_image, same_shape

SMALL, LARGE = 32**2, 96**2  # COCO's limits of area, in square pixels
ROUNDING = 1.0  # pixels by which a box may exceed the image: tools round, and VOC's counted from 1
DUPLICATE_IOU = 0.9
ODD_DEVIATIONS = 6  # robust standard deviations of the log area from the median of the class ...
ODD_RATIO = 8  # ... and so many times its area ...
ODD_COUNT = 20  # ... in a class with at least so many objects
_NOT_TRAINABLE = {
    "nothing-to-learn": "some objects count",
    "no-held-out": "the split `val` has images of its own",
    "no-train-split": "one of its splits is called `train`",
}
_VALIDATE = "It has no split `val`: hold images out with `--val 0.2`, or give others with `--val-data`."
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

    data: Path
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


def examine(parsed: ParsedDataset, data: Path) -> CheckReport:
    """Decode every image of a data set, and report all its faults.

    Args:
        parsed: as a reader returns it.
        data: as the user named it.
    """
    faults = [
        *parsed.faults,
        *image_faults(parsed),
        *_box_faults(parsed),
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
    everywhere = [(split, image) for split, images in parsed.splits.items() for image in images]
    paths = list({image.path: None for _, image in everywhere if image.path.is_file()})
    console = make_console(stderr=True)
    with ThreadPoolExecutor() as pool:
        results = track(pool.map(_decode, paths), "decoding", len(paths), console=console, transient=True)
        decoded = dict(zip(paths, results, strict=True))
    known = {fault.where for fault in parsed.faults if fault.kind == "undecodable-image"}
    by_content: dict[object, list[tuple[str, ParsedImage]]] = defaultdict(list)
    for split, image in everywhere:
        result = decoded.get(image.path)
        if isinstance(result, str):
            if str(image.path) not in known:
                yield Fault("undecodable-image", str(image.path), result)
        elif result is not None:
            by_content[result].append((split, image))
            width, height = result[0]
            if (image.width, image.height) != (width, height):
                annotated = f"{image.width} x {image.height}"
                kind = "wrong-size" if same_shape(result[0], (image.width, image.height)) else "wrong-shape"
                yield Fault(kind, image.source, f"says {annotated} pixels, {image.path.name} has {width} x {height}")
    yield from _duplicate_images(by_content)


def _decode(path: Path) -> tuple[tuple[int, int], str] | str:
    """(width, height) and a hash of the pixels, or what is wrong with the file."""
    try:
        image = open_image(path)
    except UserError as error:
        return reason(error, path)
    return image.size, hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest()


def _duplicate_images(by_content: dict[object, list[tuple[str, ParsedImage]]]) -> Iterator[Fault]:
    for occurrences in by_content.values():
        (first_split, first), *others = occurrences
        for split, image in others:
            if split != first_split:
                what = f"of split {split!r} is the same picture as {first.path} of split {first_split!r}"
                yield Fault("shared-image", str(image.path), what)
            else:
                yield Fault("duplicate-image", str(image.path), f"is the same picture as {first.path}")


# Boxes.


def _box_faults(parsed: ParsedDataset) -> Iterator[Fault]:
    for images in parsed.splits.values():
        for image in images:
            if image.boxes and image.width and image.height:
                yield from _shape_faults(image)
                yield from _duplicate_boxes(image, parsed.names)
        background = [image for image in images if not image.boxes]
        if background:
            first = background[0].path.name
            yield Fault(
                "background-image", str(parsed.root), f"{len(background)} images have no objects ({first}, ...)"
            )
    yield from _odd_sizes(parsed)


def _shape_faults(image: ParsedImage) -> Iterator[Fault]:
    """Boxes that are not finite, reversed, empty, outside or under a pixel: at most one fault per box."""
    boxes_N4 = np.array(image.boxes)
    limit_4 = np.array([image.width, image.height] * 2)
    with np.errstate(invalid="ignore"):
        size_N2 = boxes_N4[:, 2:] - boxes_N4[:, :2]
        clipped_N4 = boxes_N4.clip(0, limit_4)
        inside_N2 = clipped_N4[:, 2:] - clipped_N4[:, :2]
        over_N = np.abs(boxes_N4 - clipped_N4).max(1)
    suspects = ~np.isfinite(boxes_N4).all(1) | (inside_N2.min(1) < 1) | (over_N > ROUNDING)
    for i in np.flatnonzero(suspects).tolist():
        kind = _shape_kind(boxes_N4[i], size_N2[i], inside_N2[i], over_N[i])
        what = f"the box {_corners(boxes_N4[i])} " + _SHAPE_FAULTS[kind].format(image.width, image.height)
        yield Fault(kind, image.where(i), what)


_SHAPE_FAULTS = {
    "not-a-number": "has a coordinate that is no number",
    "reversed-box": "ends before it begins",
    "empty-box": "has no area",
    "box-outside": "reaches outside the image of {} x {} pixels",
    "tiny-box": "is less than a pixel wide or high",
}


def _shape_kind(box_4: np.ndarray, size_2: np.ndarray, inside_2: np.ndarray, over: float) -> str:
    if not np.isfinite(box_4).all():
        return "not-a-number"
    if size_2.min() < 0:
        return "reversed-box"
    if size_2.min() == 0:
        return "empty-box"
    return "box-outside" if over > ROUNDING or inside_2.min() <= 0 else "tiny-box"


def _corners(box: Sequence[float] | np.ndarray) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in box) + ")"


def _duplicate_boxes(image: ParsedImage, names: Sequence[str]) -> Iterator[Fault]:
    """Boxes of the same class with a high IoU."""
    boxes_N4, labels_N = np.array(image.boxes), np.array(image.labels)
    with np.errstate(invalid="ignore", divide="ignore"):
        iou_NN = _pairwise_iou(boxes_N4)
        alike_NN = (iou_NN >= DUPLICATE_IOU) & (labels_N[:, None] == labels_N)
    for i, j in zip(*np.nonzero(np.triu(alike_NN, 1)), strict=True):
        what = f"{names[labels_N[j]]} {_corners(boxes_N4[j])} lies on object {image.marks[i]} {_corners(boxes_N4[i])}"
        yield Fault("duplicate-box", image.where(int(j)), f"{what}, IoU {iou_NN[i, j]:.2f}")


def _pairwise_iou(boxes_N4: np.ndarray) -> np.ndarray:
    corner = np.minimum(boxes_N4[:, None, 2:], boxes_N4[None, :, 2:])
    overlap = (corner - np.maximum(boxes_N4[:, None, :2], boxes_N4[None, :, :2])).clip(0).prod(-1)
    area = (boxes_N4[:, 2:] - boxes_N4[:, :2]).clip(0).prod(-1)
    return overlap / (area[:, None] + area - overlap)


def _odd_sizes(parsed: ParsedDataset) -> Iterator[Fault]:
    """Objects whose log area is many robust standard deviations from the median of their class."""
    by_class: dict[int, list[tuple[float, ParsedImage, int]]] = defaultdict(list)
    for image in (image for images in parsed.splits.values() for image in images):
        for i, ((x1, y1, x2, y2), label, ignore) in enumerate(
            zip(image.boxes, image.labels, image.ignore, strict=True)
        ):
            area = (x2 - x1) * (y2 - y1)
            if x2 > x1 and y2 > y1 and np.isfinite(area) and not ignore:
                by_class[label].append((float(np.log(area)), image, i))
    for label, objects in by_class.items():
        logs = np.array([log for log, _, _ in objects])
        median = np.median(logs)
        deviation = 1.4826 * np.median(np.abs(logs - median))  # equals the standard deviation of a normal distribution
        if len(objects) < ODD_COUNT:
            continue
        for k in np.flatnonzero(np.abs(logs - median) > max(ODD_DEVIATIONS * deviation, np.log(ODD_RATIO))):
            log, image, i = objects[k]
            ratio = np.exp(abs(log - median))
            size = f"{ratio:.3g} times {'larger' if log > median else 'smaller'} in area than the median of its class"
            yield Fault("odd-size", image.where(i), f"{parsed.names[label]} {_corners(image.boxes[i])} is {size}")


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
    used = {label for images in parsed.splits.values() for image in images for label in image.labels}
    unused = [name for i, name in enumerate(parsed.names) if i not in used]
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
        if images and not any(map(_has_object, images)):
            what = f"none of the {len(images):,} images of split {split!r} has an object that counts"
            yield Fault("nothing-to-learn", str(parsed.root), what)
    held_out = {image.path.resolve() for image in parsed.splits.get("val", [])}
    if train and held_out and held_out <= {image.path.resolve() for image in parsed.splits[train]}:
        yield Fault("no-held-out", str(parsed.root), f"every image of split 'val' is one of split {train!r}, too")


def _ignored_objects(parsed: ParsedDataset) -> Iterator[Fault]:
    """Classes with objects that are ignored."""
    objects, ignored = Counter[int](), Counter[int]()
    for image in (image for images in parsed.splits.values() for image in images):
        objects.update(image.labels)
        ignored.update(label for label, ignore in zip(image.labels, image.ignore, strict=True) if ignore)
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
    counts = {split: Counter(label for i in images for label in i.labels) for split, images in parsed.splits.items()}
    for label, name in enumerate(parsed.names):
        others = {split: count[label] for split, count in counts.items() if split != train and count[label]}
        if train is not None and others and not counts[train][label]:
            listed = " and ".join(f"{count:,} in split {split!r}" for split, count in others.items())
            what = f"no training image has an object of the class {name!r}; there are {listed}"
            yield Fault("untrained-class", str(parsed.root), what)


def _has_object(image: ParsedImage) -> bool:
    boxes = zip(image.boxes, image.ignore, strict=True)
    return any(not ignore and is_usable(box, image.width, image.height) for box, ignore in boxes)


def _split_counts(parsed: ParsedDataset) -> dict[str, dict[str, int]]:
    return {
        split: {
            "images": len(images),
            "background": sum(not image.boxes for image in images),
            "boxes": sum(len(image.boxes) for image in images),
            "ignored": sum(sum(image.ignore) for image in images),
        }
        for split, images in parsed.splits.items()
    }


def _class_counts(parsed: ParsedDataset) -> dict[str, dict[str, Any]]:
    counts: dict[str, dict[str, Any]] = {
        name: {
            "images": 0,
            "boxes": 0,
            "ignored": 0,
            "small": 0,
            "medium": 0,
            "large": 0,
            "in": dict.fromkeys(parsed.splits, 0),
        }
        for name in parsed.names
    }
    for split, images in parsed.splits.items():
        for image in images:
            for label in set(image.labels):
                counts[parsed.names[label]]["images"] += 1
            for (x1, y1, x2, y2), label, ignore in zip(image.boxes, image.labels, image.ignore, strict=True):
                row, area = counts[parsed.names[label]], max(0, x2 - x1) * max(0, y2 - y1)
                row["boxes"] += 1
                row["ignored"] += int(ignore)
                row["small" if area < SMALL else "medium" if area < LARGE else "large"] += 1
                row["in"][split] += 1
    return counts


# The report.


def show(report: CheckReport) -> None:
    """Print the report."""
    console = make_console()
    console.print(Text(f"{report.data} ({report.format})", style="bold"))
    console.print(_split_table(report), soft_wrap=False)
    console.print(_class_table(report), soft_wrap=False)
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
    table = Table("split", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("images", "background", "boxes", "ignored"):
        table.add_column(column, justify="right")
    for split, row in report.splits.items():
        table.add_row(split, *(f"{value:,}" for value in row.values()))
    return table


def _class_table(report: CheckReport) -> Table:
    table = Table("class", box=box.SIMPLE_HEAD, pad_edge=False)
    columns = ["images", "boxes", "ignored", "small", "medium", "large"]
    splits = list(report.splits) if len(report.splits) > 1 else []
    for column in [*columns, *splits]:
        table.add_column(column, justify="right")
    for name, row in report.classes.items():
        cells = [*(f"{row[c]:,}" for c in columns), *(f"{row['in'][split]:,}" for split in splits)]
        table.add_row(Text(printable(name)), *cells)
    return table

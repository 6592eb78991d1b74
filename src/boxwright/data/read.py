"""Read a data set: recognise its format, parse it, find or make its splits."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from boxwright.classes import enumerate_classes
from boxwright.config import UserError, nearest, require
from boxwright.console import make_console
from boxwright.data import archives, coco, voc, voc_folders, yolo
from boxwright.data.columns import in_columns, paths_of, relabelled
from boxwright.data.folders import real_paths, subfolders, suffix_of, walk
from boxwright.data.formats import recognise, yolo_folders
from boxwright.data.parsed import ParsedDataset, to_dataset
from boxwright.data.records import Dataset, Record
from boxwright.data.shards import records as shards
from boxwright.data.shards.index import is_sharded
from boxwright.data.split import split
from boxwright.files import as_location
from boxwright.images import IMAGE_SUFFIXES

TRAIN_SPLITS = ("train", "trainval", "all")  # the first of these that there is
_KNOWN = (
    "known are COCO (annotations.json with images/, or annotations/instances_*.json), "
    "PASCAL VOC (Annotations/*.xml with JPEGImages/), YOLO (data.yaml with images/ and labels/), "
    + ", ".join(dict.fromkeys(format_.title for format_ in recognise.FORMATS[:-1]))
)


def read(path: Path | str, val: float = 0.0, seed: int = 0) -> Dataset:
    """Read a data set for training or evaluation.

    Boxes without area inside the image, and annotations of missing images, are left out; their number is printed to
    stderr.

    Args:
        path: a folder, annotation file, archive or URL of any format in docs/data-formats.md.
        val: share of the training images to hold out as the split ``val`` where the data set has none, 0 to 1.
        seed: of that split.

    Raises:
        UserError: there is no such folder, its format is unknown or it has two, or the data has fatal faults.
    """
    require(isinstance(path, str | os.PathLike), f"data are a path, not {type(path).__name__}; give a folder or file.")
    place = as_location(path)
    dataset, dropped = (shards.read(place), 0) if is_sharded(place) else to_dataset(parse(place))
    if dropped:
        warn_user(
            f"{path}: {dropped} objects have no box inside an image and are left out (see `boxwright check {path}`)"
        )
    if val == 0:
        return dataset
    if "val" in dataset.splits:
        warn_user(
            f"{path}: has a val split of {len(dataset.splits['val'])} images of its own, which is used instead of {val}"
        )
        return dataset
    name = _train_split(dataset)
    train, held_out = split(dataset.splits[name], val, seed)
    others = {key: records for key, records in dataset.splits.items() if key != name}
    return replace(dataset, splits={"train": train, "val": held_out, **others})


def warn_user(message: str) -> None:
    """Print one line to stderr."""
    make_console(stderr=True).print(message, style="yellow")


def parse(path: Path | str) -> ParsedDataset:
    """Parse a data set, at a path or URL, with all its faults.

    Raises:
        UserError: there is no such folder, its format is unknown or it has two.
    """
    if is_sharded(path):
        return shards.parse(path)
    if isinstance(path, str):
        raise UserError(f"{path} holds no shards.json; over a network, only data of `boxwright shard` are read")
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"{path} does not exist{nearest(path.name, siblings)}; give a folder of annotated images")
    if not path.is_file() and not path.is_dir():
        raise UserError(f"{path} is neither a file nor a folder; give a folder of annotated images")
    if path.is_file() and archives.is_archive(path):
        parsed = parse(archives.unpack(path))
        parsed.root = path
        return parsed
    if path.is_file():
        parsed = _parse_file(path)
    else:
        parsed = _parse_folder(path) or _parse_nested(path) or _parse_scattered(path) or recognise.read_folder(path)
    if parsed is None:
        raise UserError(_unknown(path))
    return parsed


def _parse_file(path: Path) -> ParsedDataset | None:
    if path.suffix.lower() in (".yaml", ".yml"):
        return yolo.read(path, path)
    if path.suffix.lower() == ".json" and recognise.format_of(path) in (None, recognise.COCO_PER_IMAGE):
        return coco.read(path, {"all": path})
    return recognise.read_file(path)


def _parse_scattered(folder: Path) -> ParsedDataset | None:
    """The data set whose files are in folders of any name, or None."""
    if folders := voc_folders.find_anywhere(folder):
        return voc.read(folder, folders)
    class_lists = yolo_folders.find(folder)
    return yolo_folders.read(folder, class_lists) if class_lists else None


def _parse_folder(folder: Path, root: Path | None = None) -> ParsedDataset | None:
    """The data set directly inside a folder, or None; its images may be anywhere in `root`."""
    root = root or folder
    coco_files, voc_places, yolo_file = _coco_files(folder), voc_folders.find(folder), yolo.find(folder)
    formats = [f"COCO ({', '.join(str(f.relative_to(folder)) for f in coco_files.values())})"] * bool(coco_files)
    formats += [f"PASCAL VOC ({next(iter(voc_places.values()))[0].annotations}/*.xml)"] if voc_places else []
    formats += [f"YOLO ({yolo_file.name})"] if yolo_file else []
    if len(formats) > 1:
        raise UserError(
            f"{folder} has {len(formats)} formats at once: {' and '.join(formats)}; "
            "give the one annotation file to use, or move the others away"
        )
    if recognise.one_image_each(coco_files):
        return recognise.read(root, recognise.COCO_PER_IMAGE, list(coco_files.values()))
    if coco_files:
        return coco.read(root, coco_files)
    if voc_places:
        return voc.read(root, voc_places)
    return yolo.read(root, yolo_file) if yolo_file else None


def _coco_files(folder: Path) -> dict[str, Path]:
    """The COCO files of a folder by split, without JSON that is called alike but is of another format."""
    files = coco.find(folder)
    known = (None, recognise.COCO_PER_IMAGE)
    return {split: file for split, file in files.items() if recognise.format_of(file) in known}


def _parse_nested(folder: Path) -> ParsedDataset | None:
    """The data set in a subfolder, as downloads often have it, or None."""
    subs = subfolders(folder)
    inside = [
        sub for sub in subs if _coco_files(sub) or voc_folders.holds_images(voc_folders.find(sub)) or yolo.find(sub)
    ]
    if not inside and len(subs) == 1:
        return _parse_nested(subs[0])
    if len(inside) > 1 and all(voc_folders.beside_images(sub) for sub in inside):
        return None  # parts of one data set, such as a folder for each class
    if len(inside) > 1:
        names = ", ".join(sub.name for sub in inside)
        raise UserError(f"{folder} holds {len(inside)} data sets ({names}); give one of these folders")
    if not inside:
        return None
    parsed = _parse_folder(inside[0], inside[0] if _holds_images(inside[0]) else folder)
    if parsed is not None:
        parsed.root = folder
    return parsed


def _holds_images(folder: Path) -> bool:
    return any(suffix_of(name) in IMAGE_SUFFIXES for _, names in walk(folder) for name in names)


def _unknown(path: Path) -> str:
    """The error message where no format is recognised, with what is there."""
    if path.is_file():
        near = recognise.nearest_format(path)
        return f"{path} is no annotation file{f' ({near})' if near else ''}; give the folder of the data set"
    entries = [p for p in path.iterdir() if not p.name.startswith(".")]
    if not entries:
        return f"{path} is empty; give a folder of annotated images"
    kinds = Counter(f"{p.name}/" if p.is_dir() else (p.suffix or p.name) for p in sorted(entries))
    seen = ", ".join(kind if kind.endswith("/") else f"{n} {kind}" for kind, n in list(kinds.items())[:8])
    has_labels = (path / "labels").is_dir() or yolo_folders.has_labels(path)
    near = "labels/ without data.yaml or classes.txt: write one with the class names" if has_labels else ""
    near = near or recognise.nearest_format(path)
    hint = f"{near}; " if near else ""
    return f"{path} has no format that boxwright knows (seen: {seen}); {hint}{_KNOWN}"


def _train_split(dataset: Dataset) -> str:
    """The name of the split to train on."""
    for name in TRAIN_SPLITS:
        if name in dataset.splits:
            return name
    raise UserError(f"{dataset.root} has no train split, only {', '.join(dataset.splits)}; name one `train`")


def name_splits(dataset: Dataset, train: str | None, val: str | None) -> Dataset:
    """Rename the given splits to ``train`` and ``val``; None keeps the ones of that name.

    A plus joins several splits: after `train` = ``train+val``, the data set has no split ``val`` of its own.

    Raises:
        UserError: a given split does not exist.
    """
    splits = dict(dataset.splits)
    if train is not None:
        splits["train"] = _joined(dataset, train)
        for name in set(train.split("+")) - {"train"}:
            del splits[name]
    if val is not None:
        splits["val"] = _joined(dataset, val)
    return replace(dataset, splits=splits)


def _joined(dataset: Dataset, wanted: str) -> Sequence[Record]:
    """The records of one split, or of several joined by a plus."""
    for name in wanted.split("+"):
        hint, known = nearest(name, dataset.splits), ", ".join(dataset.splits)
        require(name in dataset.splits, f"{dataset.root} has no split {name!r}{hint}; it has {known}")
    if "+" not in wanted:
        return dataset.splits[wanted]
    return [record for name in wanted.split("+") for record in dataset.splits[name]]


def train_and_val(dataset: Dataset, val: float = 0.0, seed: int = 0) -> tuple[Sequence[Record], Sequence[Record]]:
    """The training images and the validation images.

    Args:
        dataset: as `read` returns it.
        val: share of the training images to hold out where the data set has no split ``val``.
        seed: of that split.

    Raises:
        UserError: there are no validation images, or they are the training images, or one of the two parts has no
            object.
    """
    train = dataset.splits[_train_split(dataset)]
    if "val" not in dataset.splits:
        splits = ", ".join(dataset.splits)
        hint = "hold some images out with `--val 0.2`, or give another data set with `--val-data`"
        require(val, f"{dataset.root} has no split to validate on (it has: {splits}); {hint}")
        train, held_out = split(train, val, seed)
        _check_objects(dataset, train, held_out)
        return train, held_out
    held_out = dataset.splits["val"]
    _check_objects(dataset, train, held_out)
    shared = _shared_images(train, held_out)
    if held_out and shared == len(held_out):
        raise UserError(
            f"{dataset.root}: every validation image is a training image too, so no score would mean anything; "
            "make the splits disjoint, or remove the val split and use `--val 0.2`"
        )
    if shared:
        warn_user(
            f"{dataset.root}: {shared} of {len(held_out)} validation images are training images too: scores flatter"
        )
    return train, held_out


def _shared_images(train: Sequence[Record], held_out: Sequence[Record]) -> int:
    """How many held-out images are training images, too: the same files or, in shards, the same bytes."""
    packed = [records for records in (train, held_out) if isinstance(records, shards.ShardRecords)]
    if packed:
        return int(np.isin(packed[1].checksums(), packed[0].checksums()).sum()) if len(packed) == 2 else 0
    val_paths = Counter(real_paths(paths_of(held_out)))
    return sum(val_paths.pop(path, 0) for path in real_paths(paths_of(train)))


def _check_objects(dataset: Dataset, train: Sequence[Record], val: Sequence[Record]) -> None:
    """Raise `UserError` if a part has no object; warn of classes without a training object."""
    counts = [shards.count_labels(records, len(dataset.names)) for records in (train, val)]
    for part, records, counts_K in zip(("training", "validation"), (train, val), counts, strict=True):
        require(
            counts_K.any(), f"{dataset.root}: none of the {len(records)} {part} images has an object; annotate some"
        )
    never = [name for name, count in zip(dataset.names, counts[0], strict=True) if not count]
    if never:
        warn_user(
            f"{dataset.root}: no training image has an object of {enumerate_classes(never)}: never learned or found"
        )


def merge_val(train: Dataset, val: Dataset) -> Dataset:
    """One data set from two: the training images of `train`, and the images of `val` as its split ``val``.

    Classes are matched by name; those that only `val` has objects of follow, with a warning. Category ids are those of
    `val`, so that results can be scored against its file.

    Raises:
        UserError: the two have no class in common, or `val` has several splits of which none is ``val``.
    """
    records = _val_records(val)
    labels = {label for part in in_columns(records) for label in np.unique(part.labels_N).tolist()}
    used = [name for label, name in enumerate(val.names) if label in labels]
    unknown = [name for name in used if name not in train.names]
    if unknown:
        what = f"{val.root} has objects of classes that {train.root} lacks: {enumerate_classes(unknown)}"
        require(len(unknown) < len(used), f"{what}, and of no other; rename them")
        warn_user(f"{what}; no score of them can be over 0. Rename them if they go by another name there")
    names = (*train.names, *unknown)
    positions = np.array([names.index(n) if n in names else -1 for n in val.names], dtype=np.int64)
    mapped = relabelled(records, positions)
    ids = dict(zip(val.names, val.category_ids, strict=True))
    free = range(max(train.category_ids, default=0) + 1, max(train.category_ids, default=0) + 1 + len(unknown))
    category_ids = tuple(ids[n] for n in names) if set(names) <= set(ids) else (*train.category_ids, *free)
    splits = {"train": train.splits[_train_split(train)], "val": mapped}
    return replace(train, names=names, splits=splits, category_ids=category_ids)


def _val_records(val: Dataset) -> Sequence[Record]:
    """The split ``val``, or the only split."""
    name = "val" if "val" in val.splits else next(iter(val.splits))
    several = "val" not in val.splits and len(val.splits) > 1
    require(not several, f"{val.root} has several splits ({', '.join(val.splits)}) and none is called `val`")
    return val.splits[name]

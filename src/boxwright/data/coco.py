"""COCO JSON: `annotations/instances_train.json` beside `train/`, one `annotations.json`, Roboflow exports, a bare file.

Boxes are ``[x, y, width, height]`` in pixels. Category ids may have gaps; classes are ordered by id, and
`Dataset.category_ids` keeps the ids. A data set has the classes of all its files, those of the first split first. An id
may be a number in one place and the same number as text or float in another. `iscrowd` and `difficult` (1) become
ignore.
"""

from __future__ import annotations

import json
import mmap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from boxwright.data.coco_columns import CocoContent, ImageRows, file_name
from boxwright.data.folders import (
    any_case,
    bare_name,
    by_split,
    can_be_a_file,
    files_in,
    split_name,
    split_of,
    subfolders,
    suffix_of,
)
from boxwright.data.id_column import IdColumn, hashable, number
from boxwright.data.image_index import ImageIndex
from boxwright.data.image_table import ImageColumns, ImageTable, ObjectColumns, names_there
from boxwright.data.json_stream import JsonStream
from boxwright.data.parsed import ParsedDataset, ParsedImage, check_names, merged_lists, read_text
from boxwright.data.records import Record
from boxwright.files import is_file
from boxwright.images import IMAGE_SUFFIXES

_OTHER_TASKS = ("captions", "person_keypoints", "panoptic", "stuff", "image_info")


def find(root: Path) -> dict[str, Path]:
    """The annotation files of a folder by split; empty if it is no COCO folder."""
    annotations = any_case(root, Path("annotations"))
    files = (_json_files(annotations) if annotations else []) or _json_files(root)
    if files:
        return by_split([f.stem for f in files], files)
    inside = [(folder, _json_files(folder)) for folder in subfolders(root) if split_name(folder.name)]
    found = {folder.name: files[0] for folder, files in inside if len(files) == 1}
    return by_split(list(found), list(found.values()))


def _json_files(folder: Path) -> list[Path]:
    files = [f for f in files_in(folder, [".json"]) if not f.name.startswith(_OTHER_TASKS)]
    instances = [f for f in files if f.name.startswith("instances")]
    return instances or [f for f in files if "annotations" in f.stem.lower() or _looks_like_coco(f)]


def _looks_like_coco(file: Path) -> bool:
    if file.stat().st_size == 0:
        return False
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(b'"images"') >= 0 and content.find(b'"annotations"') >= 0


def read(root: Path, files: dict[str, Path]) -> ParsedDataset:
    """Parse the annotation files of a data set, given by split."""
    parsed = ParsedDataset(root, "coco")
    contents = {split: content for split, file in files.items() if (content := _load(parsed, file)) is not None}
    used = {split: files[split] for split in contents}
    group_names = _group_names(list(contents.values()))
    classes: dict[str, dict[str, int]] = {}
    for split, content in contents.items():
        classes[split] = _classes(parsed, files[split], content, group_names)
    _agree_on_classes(parsed, used, classes)
    index, folders = ImageIndex(parsed), {}
    for split, file in used.items():
        content = contents.pop(split)  # so that it is freed
        positions = {id_: parsed.names.index(name) for name, id_ in classes[split].items() if name in parsed.names}
        folders[split] = _image_folder(Path(parsed.root), file, content.images.names)
        if images := _images(parsed, index, file, folders[split], content, positions):
            parsed.splits[split] = images
        else:
            parsed.add_fault("empty-split", file, "has no images")
    index.finish()
    _check_unlisted(parsed, index, list(dict.fromkeys(folders.values())))
    return parsed


def _load(parsed: ParsedDataset, file: Path) -> CocoContent | None:
    """The content of a file with its three lists; None, and a fault recorded, if it is broken."""
    faults = list(parsed.faults)
    try:
        if file.is_file():  # a pipe would never end
            with JsonStream(file) as stream:
                return _from_lists(parsed, file, _lists(stream))
    except (OSError, ValueError, RecursionError):  # all is read once more, for a fault that says where
        parsed.faults[:] = faults
    text = read_text(file, parsed)
    if text is None:
        return None
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        parsed.add_fault(
            "broken-file", f"{file}:{error.lineno}", f"is not valid JSON ({error.msg}, column {error.colno})"
        )
    except RecursionError:
        parsed.add_fault("broken-file", file, "is nested too deeply to be COCO JSON")
    except ValueError:
        parsed.add_fault("broken-file", file, "holds a number of thousands of digits")
    else:
        missing = [key for key in _NEEDED if not isinstance(content, dict) or not isinstance(content.get(key), list)]
        if not missing:  # a list is there twice, and the last one counts
            return _from_lists(parsed, file, ((key, content[key]) for key in _NEEDED))
        parsed.add_fault("broken-file", file, f"has no list `{missing[0]}`, which COCO JSON needs")
    return None


def _lists(stream: JsonStream) -> Iterator[tuple[str, Iterable[Any]]]:
    """The three lists, in the order of the file; a `ValueError` if one is no list, is missing, or is there twice."""
    found = []
    for key in stream.keys():  # noqa: SIM118 - no dictionary
        if key not in _NEEDED:
            stream.value()
        elif key in found or not stream.is_array():
            raise ValueError(f"{key} is no list, or is there twice")
        else:
            found.append(key)
            yield key, stream.items()
    if len(found) < len(_NEEDED):
        raise ValueError("a list is missing")


def _from_lists(parsed: ParsedDataset, file: Path, lists: Iterable[tuple[str, Iterable[Any]]]) -> CocoContent:
    """The content of a file, given by its three lists in any order; faults are recorded in a fixed one."""
    content, faults = CocoContent(), {key: ParsedDataset(parsed.root, parsed.format) for key in _NEEDED}
    images, annotations, categories = content.images.add, content.annotations.add, content.categories.append
    add = {"images": images, "annotations": annotations, "categories": categories}
    for key, rows in lists:
        for i, row in enumerate(rows):
            if _is_whole(faults[key], file, key, i, row):
                add[key](row)
    for each in faults.values():
        parsed.faults += each.faults
    content.finish()
    return content


_NEEDED = {
    "images": ("id",),
    "annotations": ("image_id", "category_id"),
    "categories": ("id", "name"),
}


def _is_whole(parsed: ParsedDataset, file: Path, key: str, i: int, row: Any) -> bool:
    """Whether a row has all the keys it needs; a fault is recorded if not."""
    needed = _NEEDED[key]
    missing = [k for k in needed if not isinstance(row, dict) or row.get(k) is None]
    if key == "annotations" and isinstance(row, dict) and row.get("bbox") is row.get("segmentation") is None:
        missing.append("bbox")
    if key == "images" and not missing and not file_name(row):
        missing = ["file_name"]
    if missing:
        name = row["id"] if isinstance(row, dict) and "id" in row else None
        which = f"`{key}` record {i + 1}" + ("" if name is None else f" (id {name})")
        parsed.add_fault("broken-record", f"{file}, {which}", f"has no `{'`, `'.join(missing)}`")
    elif not hashable(row[needed[0]]):
        parsed.add_fault("broken-record", f"{file}, `{key}` record {i + 1}", f"`{needed[0]}` is not a number")
    elif key == "images" and not can_be_a_file(file_name(row)):
        what = f"no file can have the name {file_name(row)!r:.60}"
        parsed.add_fault("broken-record", f"{file}, `images` record {i + 1}", what)
    else:
        return True
    return False


def _group_names(contents: Sequence[CocoContent]) -> set[str]:
    """Categories without objects that are the supercategory of another one: they only name a group."""
    used, groups, names = set(), set(), set()
    for content in contents:
        by_id = {row["id"]: str(row["name"]).strip() for row in content.categories}
        used |= {by_id.get(id_) for id_ in content.used_ids()}
        names |= set(by_id.values())
        groups |= {
            str(row["supercategory"]).strip()
            for row in content.categories
            if row.get("supercategory") and str(row["supercategory"]).strip() != by_id[row["id"]]
        }
    return (groups & names) - used


def _classes(parsed: ParsedDataset, file: Path, content: CocoContent, group_names: set[str]) -> dict[str, int]:
    """Category id of each class by name, in the order of the ids."""
    rows = _without_duplicates(parsed, file, content)
    for id_, count in Counter(id_ for id_, _ in rows).items():
        if count > 1:
            parsed.add_fault("duplicate-class", f"{file}, `categories`", f"the id {id_} is given to {count} classes")
    check_names(parsed, f"{file}, `categories`", [name for _, name in rows])
    rows = [(id_, name) for id_, name in rows if _check_integer(parsed, file, id_)]
    for _, name in rows:
        if name in group_names:
            parsed.add_fault("heading", f"{file}, `categories`", f"{name!r} is the supercategory of other classes")
    return {name: id_ for id_, name in sorted(rows) if name not in group_names}


def _without_duplicates(parsed: ParsedDataset, file: Path, content: CocoContent) -> list[tuple[Any, str]]:
    """(id, name) of the categories, without those that have no object and the name of another one."""
    rows = [(row["id"], str(row["name"]).strip()) for row in content.categories]
    used = content.used_ids()
    kept: dict[str, Any] = {}
    for id_, name in rows:
        kept[name] = id_ if name not in kept or (id_ in used and kept[name] not in used) else kept[name]
    spare = [(id_, name) for id_, name in rows if id_ != kept[name] and id_ not in used]
    for id_, name in spare:
        what = f"{name!r} has the ids {kept[name]} and {id_}, and no object has {id_}"
        parsed.add_fault("unused-duplicate", f"{file}, `categories`", what)
    return [row for row in rows if row not in spare]


def _check_integer(parsed: ParsedDataset, file: Path, id_: object) -> bool:
    """Whether a category id is an integer; a fault is recorded if not."""
    if not isinstance(id_, int):
        parsed.add_fault("broken-record", f"{file}, `categories`", f"the id {id_!r} is not an integer")
    return isinstance(id_, int)


def _agree_on_classes(parsed: ParsedDataset, files: dict[str, Path], classes: dict[str, dict[str, int]]) -> None:
    """Take the classes of all splits, those of the first one first, and record a fault for each split that differs."""
    merged: dict[str, int] = {}
    for ids in classes.values():
        merged = _with_ids(merged, ids)
    parsed.names, parsed.category_ids = tuple(merged), tuple(merged.values())
    if not classes:
        return
    merged_lists(parsed, {files[split]: list(ids) for split, ids in classes.items()})
    first = next(iter(classes))
    for split, ids in list(classes.items())[1:]:
        if any(merged[name] != id_ for name, id_ in ids.items()):
            parsed.add_fault("class-ids-differ", files[split], f"numbers its classes otherwise than {files[first]}")
            own = _with_ids(ids, merged)
            parsed.split_ids[split] = tuple(own[name] for name in parsed.names)


def _with_ids(ids: dict[str, int], others: dict[str, int]) -> dict[str, int]:
    """Class ids, and those of other classes behind them; one that is taken already becomes the next free number."""
    merged, taken = dict(ids), set(ids.values())
    free = max([0, *taken, *others.values()]) + 1
    for name, id_ in others.items():
        if name not in merged:
            merged[name] = free if id_ in taken else id_
            free += id_ in taken
            taken.add(merged[name])
    return merged


def _images(
    parsed: ParsedDataset,
    index: ImageIndex,
    file: Path,
    folder: Path,
    content: CocoContent,
    positions: dict[Any, int],
) -> Sequence[ParsedImage]:
    rows = _distinct(parsed, file, content.images)
    columns = ImageColumns(str(folder), file, rows.names, rows.ids, moved={}, sizes=rows.sizes)
    for position, name in enumerate(rows.names):
        if not index.holds(columns.folder, name):
            columns.moved[position] = index.find(name, folder, f"{file}, image {rows.ids[position]}")
    index.forget_listings()
    images = ImageTable(columns, _annotate(parsed, file, content, rows.ids, positions), content.annotations.marks)
    images.fill_sizes(parsed)
    return images


def _distinct(parsed: ParsedDataset, file: Path, images: ImageRows) -> ImageRows:
    """The images without those whose id an earlier one has; faults are recorded for these."""
    repeats = images.ids.repeats()
    for row, first in repeats.items():
        what = f"{images.names[first]} and {images.names[row]} have the same id"
        parsed.add_fault("duplicate-id", f"{file}, image {images.ids[row]}", what)
    rows = images.without(repeats) if repeats else images
    ids = rows.ids
    if ids.others:
        ids = IdColumn(number(id_) if isinstance(id_, float) else id_ for id_ in ids)
    return replace(rows, ids=ids)


def _annotate(
    parsed: ParsedDataset, file: Path, content: CocoContent, ids: IdColumn, positions: dict[Any, int]
) -> ObjectColumns:
    """The objects of the images, given by id; faults are recorded for those without a box, image or class."""
    rows = content.annotations
    image_A, label_A = rows.image_ids.positions_in(ids), content.labels(positions)
    good_A = (image_A >= 0) & (label_A >= 0)
    rows.image_ids.keep_only(np.flatnonzero(image_A < 0).tolist())
    good_A[list(rows.problems)] = False
    for row in np.flatnonzero(~good_A).tolist():
        kind, what = "broken-record", rows.problems.get(row)
        if what is None and image_A[row] < 0:
            kind, what = "orphan-annotation", f"there is no image with the id {rows.image_ids[row]}"
        elif what is None:
            kind, what = "unknown-class", f"there is no category with the id {content.category_id(row)}"
        parsed.add_fault(kind, f"{file}, annotation {rows.marks[row]}", what)
    if rows.derived:
        parsed.add_fault("derived-box", file, f"{rows.derived} annotations have a segmentation but no `bbox`")
    if len(rows) and not (image_A >= 0).any():
        what = f"none of its {len(rows)} annotations belongs to one of its images: `image_id` is never an image's `id`"
        parsed.add_fault("broken-file", file, what)
    for mark, count in rows.marks.repeated():
        what = f"{count} annotations have this id"
        parsed.add_fault("duplicate-annotation-id", f"{file}, annotation {mark}", what)
    return ObjectColumns.grouped(len(ids), image_A, good_A, rows.boxes, label_A, rows.ignore)


def _image_folder(root: Path, file: Path, names: Sequence[str]) -> Path:
    """The folder with most of the images, out of all folders where data sets have them, in any capitals."""
    here = file.parent
    parents = [folder for folder in dict.fromkeys((here, here.parent, root)) if folder.is_dir()]
    known = [(parent, folder) for parent in parents for folder in subfolders(parent)]
    bases = list(parents)
    bases += [folder for parent, folder in known if folder.name.lower() in ("images", "data")[: 1 + (parent == here)]]
    of_split = {
        name.lower() for name in (bare_name(file.stem), split_of(Path(file.stem)), split_name(here.name)) if name
    }
    split_folders = [
        folder
        for base in bases
        for folder in subfolders(base)
        if folder.name.lower() in of_split or split_of(Path(folder.name)) in of_split
    ]
    sample = [name.replace("\\", "/") for name in names[:: max(1, len(names) // 50)]]
    return max([*split_folders, *bases], key=lambda folder: sum(is_file(folder / name) for name in sample))


def _check_unlisted(parsed: ParsedDataset, index: ImageIndex, folders: Sequence[Path]) -> None:
    waiting = {str(folder): {name for name in index.names_in(folder) if _is_image(name)} for folder in folders}
    for images in parsed.splits.values():
        for folder, name in names_there(images):
            if folder in waiting:
                waiting[folder].discard(name)
    for folder, unlisted in waiting.items():
        if unlisted:
            what = f"{len(unlisted)} images are not in the annotations ({min(unlisted)}, ...)"
            parsed.add_fault("unlisted-image", folder, what)


def _is_image(name: str) -> bool:
    return suffix_of(name) in IMAGE_SUFFIXES and not name.startswith(".")


def write(
    out: Path,
    split: str,
    records: Sequence[Record],
    image_names: Sequence[str],
    names: Sequence[str],
    ids: Sequence[int],
) -> None:
    """Write the annotations of one split; its images belong into `image_folder`.

    Ignored objects are written with ``iscrowd: 1``, which COCO tools leave out of evaluation.
    """
    image_ids = [record.image_id for record in records]
    if len(set(image_ids)) < len(image_ids):
        image_ids = list(range(1, len(records) + 1))
    images, annotations = [], []
    for record, name, image_id in zip(records, image_names, image_ids, strict=True):
        images.append({"id": image_id, "file_name": name, "width": record.width, "height": record.height})
        for box, label, ignore in zip(record.boxes_N4.tolist(), record.labels_N, record.ignore_N, strict=True):
            annotations.append(_annotation(len(annotations) + 1, image_id, box, ids[label], ignore))
    categories = [{"id": id_, "name": name} for id_, name in zip(ids, names, strict=True)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    file = out / "annotations.json" if split == "all" else out / "annotations" / f"instances_{split}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, ensure_ascii=False, allow_nan=False), encoding="utf-8")


def _annotation(id_: int, image_id: int | str, box: Sequence[float], category: int, ignore: bool) -> dict[str, Any]:
    x1, y1, x2, y2 = box
    bbox = [x1, y1, x2 - x1, y2 - y1]
    area = max(0.0, bbox[2]) * max(0.0, bbox[3])
    crowd = int(ignore)
    return {"id": id_, "image_id": image_id, "category_id": category, "bbox": bbox, "area": area, "iscrowd": crowd}


def image_folder(out: Path, split: str) -> Path:
    """Where the images of a split belong."""
    return out / ("images" if split == "all" else split)

"""COCO JSON: `annotations/instances_train.json` beside `train/`, one `annotations.json`, Roboflow exports, a bare file.

Boxes are ``[x, y, width, height]`` in pixels. Category ids may have gaps; classes are ordered by id, and
`Dataset.category_ids` keeps the ids. A data set has the classes of all its files, those of the first split first. An id
may be a number in one place and the same number as text or float in another. `iscrowd` and `difficult` (1) become
ignore.
"""

from __future__ import annotations

import json
import mmap
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from boxwright.data.folders import bare_name, by_split, can_be_a_file, files_in, split_name, subfolders
from boxwright.data.formats.shapes import MalformedError, segmentation_box
from boxwright.data.image_index import ImageIndex, clean_name
from boxwright.data.parsed import ParsedDataset, ParsedImage, check_names, fill_sizes, merged_lists, read_text
from boxwright.data.records import Record
from boxwright.images import IMAGE_SUFFIXES

_OTHER_TASKS = ("captions", "person_keypoints", "panoptic", "stuff", "image_info")


def find(root: Path) -> dict[str, Path]:
    """The annotation files of a folder by split; empty if it is no COCO folder."""
    files = _json_files(root / "annotations") or _json_files(root)
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
    group_names = _group_names(list(contents.values()))
    classes: dict[str, dict[str, int]] = {}
    for split, content in contents.items():
        classes[split] = _classes(parsed, files[split], content, group_names)
    _agree_on_classes(parsed, {split: files[split] for split in contents}, classes)
    index, folders = ImageIndex(parsed), {}
    for split, content in contents.items():
        positions = {id_: parsed.names.index(name) for name, id_ in classes[split].items() if name in parsed.names}
        folders[split] = _image_folder(parsed.root, files[split], [_file_name(row) for row in content["images"]])
        if images := _images(parsed, index, files[split], folders[split], content, positions):
            parsed.splits[split] = images
        else:
            parsed.add_fault("empty-split", files[split], "has no images")
    index.finish()
    _check_unlisted(parsed, list(dict.fromkeys(folders.values())))
    return parsed


def _load(parsed: ParsedDataset, file: Path) -> dict[str, Any] | None:
    """The content of a file with its three lists; None, and a fault recorded, if it is broken."""
    text = read_text(file, parsed)
    if text is None:
        return None
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        parsed.add_fault(
            "broken-file", f"{file}:{error.lineno}", f"is not valid JSON ({error.msg}, column {error.colno})"
        )
        return None
    except RecursionError:
        parsed.add_fault("broken-file", file, "is nested too deeply to be COCO JSON")
        return None
    except ValueError:
        parsed.add_fault("broken-file", file, "holds a number of thousands of digits")
        return None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            parsed.add_fault("broken-file", file, f"has no list `{key}`, which COCO JSON needs")
            return None
    rows = {key: _rows(parsed, file, key, content[key]) for key in ("images", "annotations", "categories")}
    _match_ids(rows)
    return rows


_NEEDED = {
    "images": ("id",),
    "annotations": ("image_id", "category_id"),
    "categories": ("id", "name"),
}


def _rows(parsed: ParsedDataset, file: Path, key: str, rows: list[Any]) -> list[dict[str, Any]]:
    """The rows with all the keys they need; a fault is recorded for each of the others."""
    needed = _NEEDED[key]
    good = []
    for i, row in enumerate(rows):
        missing = [k for k in needed if not isinstance(row, dict) or row.get(k) is None]
        if key == "annotations" and isinstance(row, dict) and row.get("bbox") is row.get("segmentation") is None:
            missing.append("bbox")
        if key == "images" and not missing and not _file_name(row):
            missing = ["file_name"]
        if missing:
            name = row["id"] if isinstance(row, dict) and "id" in row else None
            which = f"`{key}` record {i + 1}" + ("" if name is None else f" (id {name})")
            parsed.add_fault("broken-record", f"{file}, {which}", f"has no `{'`, `'.join(missing)}`")
        elif isinstance(row[needed[0]], (list, dict)):
            parsed.add_fault("broken-record", f"{file}, `{key}` record {i + 1}", f"`{needed[0]}` is not a number")
        elif key == "images" and not can_be_a_file(_file_name(row)):
            what = f"no file can have the name {_file_name(row)!r:.60}"
            parsed.add_fault("broken-record", f"{file}, `images` record {i + 1}", what)
        else:
            good.append(row)
    return good


def _file_name(row: dict[str, Any]) -> str:
    """The file name of an image; LVIS gives only its address, `coco_url`."""
    return str(row.get("file_name") or clean_name(str(row.get("coco_url") or "")))


def _match_ids(content: dict[str, Any]) -> None:
    """Make integral category ids integers, and write the ids in annotations as images and categories have them."""
    for row in content["categories"]:
        row["id"] = _number(row["id"])
    for key, rows in (("image_id", content["images"]), ("category_id", content["categories"])):
        ids = {row["id"] for row in rows}
        numbers = Counter(map(_number, ids))
        own = {_number(id_): id_ for id_ in ids if numbers[_number(id_)] == 1}
        for row in content["annotations"]:
            if _hashable(row[key]) and row[key] not in ids:
                row[key] = own.get(_number(row[key]), row[key])


def _number(id_: Any) -> Any:
    """An id as an integer if it is an integral number or the text of one; otherwise as it is."""
    if isinstance(id_, str):
        return int(id_) if re.fullmatch(r"\s*-?[0-9]{1,18}\s*", id_) else id_
    return int(id_) if isinstance(id_, float) and id_.is_integer() else id_


def _group_names(contents: Sequence[dict[str, Any]]) -> set[str]:
    """Categories without objects that are the supercategory of another one: they only name a group."""
    used, groups, names = set(), set(), set()
    for content in contents:
        by_id = {row["id"]: str(row["name"]).strip() for row in content["categories"]}
        used |= {by_id.get(row["category_id"]) for row in content["annotations"] if _hashable(row["category_id"])}
        names |= set(by_id.values())
        groups |= {
            str(row["supercategory"]).strip()
            for row in content["categories"]
            if row.get("supercategory") and str(row["supercategory"]).strip() != by_id[row["id"]]
        }
    return (groups & names) - used


def _hashable(value: object) -> bool:
    return not isinstance(value, (list, dict))


def _classes(parsed: ParsedDataset, file: Path, content: dict[str, Any], group_names: set[str]) -> dict[str, int]:
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


def _without_duplicates(parsed: ParsedDataset, file: Path, content: dict[str, Any]) -> list[tuple[Any, str]]:
    """(id, name) of the categories, without those that have no object and the name of another one."""
    rows = [(row["id"], str(row["name"]).strip()) for row in content["categories"]]
    used = {row["category_id"] for row in content["annotations"] if _hashable(row["category_id"])}
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
    content: dict[str, Any],
    positions: dict[Any, int],
) -> list[ParsedImage]:
    by_id: dict[Any, ParsedImage] = {}
    for row in content["images"]:
        name, id_ = _file_name(row), row["id"]
        if id_ in by_id:
            parsed.add_fault(
                "duplicate-id", f"{file}, image {id_}", f"{by_id[id_].path.name} and {name} have the same id"
            )
            continue
        path = index.find(name, folder, f"{file}, image {id_}")
        own_id = _number(id_) if isinstance(id_, float) else id_
        size = _to_integer(row.get("width")), _to_integer(row.get("height"))
        by_id[id_] = ParsedImage(path, *size, own_id, f"{file}, image {id_} ({name})", ", annotation {}")
    images = list(by_id.values())
    _annotate(parsed, file, content["annotations"], by_id, positions)
    fill_sizes(parsed, images)
    return images


def _to_integer(value: object) -> int:
    return int(value) if isinstance(value, (int, float)) and value == value and abs(value) < 1e9 else 0


def _annotate(
    parsed: ParsedDataset,
    file: Path,
    rows: Sequence[dict[str, Any]],
    by_id: dict[Any, ParsedImage],
    positions: dict[Any, int],
) -> None:
    marks: Counter[Any] = Counter()
    for i, row in enumerate(rows):
        mark = row["id"] if isinstance(row.get("id"), (int, str)) else f"number {i + 1}"
        marks[mark] += 1
        box = _box(row)
        problem = _problem(row, by_id, positions)
        if isinstance(box, str):
            parsed.add_fault("broken-record", f"{file}, annotation {mark}", box)
        elif problem:
            parsed.add_fault(problem[0], f"{file}, annotation {mark}", problem[1])
        else:
            ignore = _flag(row.get("iscrowd")) or _flag(row.get("difficult"))
            by_id[row["image_id"]].add(box, positions[row["category_id"]], ignore, mark)
    derived = sum(row.get("bbox") is None and row.get("segmentation") is not None for row in rows)
    if derived:
        parsed.add_fault("derived-box", file, f"{derived} annotations have a segmentation but no `bbox`")
    if rows and all(row["image_id"] not in by_id for row in rows):
        what = f"none of its {len(rows)} annotations belongs to one of its images: `image_id` is never an image's `id`"
        parsed.add_fault("broken-file", file, what)
    for mark, count in marks.items():
        if count > 1:
            parsed.add_fault(
                "duplicate-annotation-id", f"{file}, annotation {mark}", f"{count} annotations have this id"
            )


def _problem(row: dict[str, Any], by_id: dict[Any, ParsedImage], positions: dict[Any, int]) -> tuple[str, str] | None:
    """(kind, what) of the fault of an annotation without a known image or class, or None."""
    if row["image_id"] not in by_id:
        return "orphan-annotation", f"there is no image with the id {row['image_id']}"
    if not _hashable(row["category_id"]) or row["category_id"] not in positions:
        return "unknown-class", f"there is no category with the id {row['category_id']}"
    return None


def _flag(value: object) -> bool:
    return str(value).strip().lower() in ("1", "1.0", "true")


def _box(row: dict[str, Any]) -> tuple[float, float, float, float] | str:
    """The box of an annotation, or of its segmentation where it has no box; else what is wrong."""
    bbox, segmentation = row.get("bbox"), row.get("segmentation")
    try:
        if bbox is None and segmentation is not None:
            return segmentation_box(segmentation)
        x, y, width, height = map(float, bbox)  # type: ignore[arg-type]
    except MalformedError as error:
        return str(error)
    except (TypeError, ValueError, KeyError, OverflowError):
        if bbox is None:
            return "`segmentation` is neither polygons nor a mask"
        return f"`bbox` is not four numbers: {bbox!s:.60}"
    return x, y, x + width, y + height


def _image_folder(root: Path, file: Path, names: Sequence[str]) -> Path:
    """The folder with most of the images, out of all folders where data sets have them."""
    here = file.parent
    names_of_split = [bare_name(file.stem), split_name(file.stem) or "", split_name(here.name) or ""]
    bases = [here, here / "images", here / "data", here.parent, here.parent / "images", root, root / "images"]
    split_folders = [base / name for name in names_of_split if name for base in bases]
    sample = [name.replace("\\", "/") for name in names[:: max(1, len(names) // 50)]]
    return max([*split_folders, *bases], key=lambda folder: sum((folder / name).is_file() for name in sample))


def _check_unlisted(parsed: ParsedDataset, folders: Sequence[Path]) -> None:
    listed = {image.path for images in parsed.splits.values() for image in images}
    for folder in folders:
        unlisted = [f for f in files_in(folder, IMAGE_SUFFIXES) if f not in listed]
        if unlisted:
            parsed.add_fault(
                "unlisted-image", folder, f"{len(unlisted)} images are not in the annotations ({unlisted[0].name}, ...)"
            )


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

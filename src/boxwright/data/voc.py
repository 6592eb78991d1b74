"""PASCAL VOC XML: `Annotations/`, `JPEGImages/` and `ImageSets/Main/`, or plain folders of XML beside images.

Corners are taken as written, as pixel edges counted from 0. The original devkit counted pixels from 1, most tools of
today do not, and no file says which; the difference is one pixel at most, and taking the numbers unchanged makes every
round trip exact.

VOC has no class list. The classes are those of `classes.txt` (one name a line) beside `Annotations/`, or else the
sorted names of all objects. `difficult` becomes ignore.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from boxwright.data.faults import Fault
from boxwright.data.folders import by_split, files_in, in_order, split_name, subfolders
from boxwright.data.parsed import ParsedDataset, ParsedImage, check_names, fill_sizes, in_threads, read_text
from boxwright.data.records import Record
from boxwright.images import IMAGE_SUFFIXES

CLASS_LIST = "classes.txt"


@dataclass(frozen=True)
class Folder:
    """The folders of a split: XML files, images, and the list of its ids, if there is one."""

    annotations: Path
    images: Path
    ids: Path | None = None


def find(root: Path) -> dict[str, Folder]:
    """The folders of a data set by split; empty if it is no VOC folder."""
    if root.name.lower() == "annotations" and _xml_files(root):
        root = root.parent
    folder = _folder_at(root)
    if folder is None:
        inside = {sub.name: f for sub in subfolders(root) if split_name(sub.name) and (f := _folder_at(sub))}
        return by_split(list(inside), list(inside.values()))
    lists = {file.stem: file for file in files_in(root / "ImageSets" / "Main", [".txt"]) if not _is_class_list(file)}
    if {"train", "val"} <= set(lists):
        lists.pop("trainval", None)
    splits = {split: Folder(folder.annotations, folder.images, file) for split, file in lists.items()}
    return in_order(splits) or {"all": folder}


def _folder_at(root: Path) -> Folder | None:
    """Annotations and images directly below `root`."""
    for name in ("Annotations", "annotations", "."):
        annotations = root / name
        if _xml_files(annotations):
            images = [root / folder for folder in ("JPEGImages", "images", "Images")] + [annotations, root]
            return Folder(annotations, next((f for f in images if files_in(f, IMAGE_SUFFIXES)), root / "JPEGImages"))
    return None


def _xml_files(folder: Path) -> list[Path]:
    """The XML files of a folder, if one of the first few begins with <annotation>."""
    files = files_in(folder, [".xml"])
    return files if any(_is_annotation(file) for file in files[:20]) else []


def _is_annotation(file: Path) -> bool:
    with file.open("rb") as stream:
        return re.search(rb"<annotation[\s>]", stream.read(2000)) is not None  # not CVAT's <annotations>


def _is_class_list(file: Path) -> bool:
    """Whether it is VOC's list of one class (`cat_train.txt`), whose lines end in -1, 0 or 1."""
    lines = [line for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    prefix, _, split = file.stem.rpartition("_")
    return bool(prefix and split_name(split) and lines) and all(
        re.fullmatch(r".*\s(-1|0|1)\s*", line) for line in lines
    )


def read(root: Path, folders: dict[str, Folder]) -> ParsedDataset:
    """Parse the folders of a data set, given by split."""
    parsed = ParsedDataset(root, "voc")
    entries_by_split = {split: _parse_folder(parsed, folder) for split, folder in folders.items()}
    parsed.names = _class_names(parsed, next(iter(folders.values())), entries_by_split)
    positions = {name: i for i, name in enumerate(parsed.names)}
    for split, folder in folders.items():
        images = [_image(parsed, entry, i + 1, positions) for i, entry in enumerate(entries_by_split[split])]
        fill_sizes(parsed, images)
        parsed.splits[split] = images
        if not images:
            parsed.add_fault("empty-split", folder.ids or folder.images, f"the split {split!r} has no images")
    parsed.splits = {split: images for split, images in parsed.splits.items() if images}
    _check_unlisted(parsed, folders)
    return parsed


@dataclass(frozen=True)
class _Entry:
    """One image and the root of its XML file; None for a background image without one."""

    image: Path
    file: Path
    root: ET.Element | None


def _parse_folder(parsed: ParsedDataset, folder: Folder) -> list[_Entry]:
    """The images of a split with their XML; broken files are left out, and faults recorded."""
    images = {file.stem: file for file in files_in(folder.images, IMAGE_SUFFIXES)}
    files = {file.stem: file for file in files_in(folder.annotations, [".xml"])}
    stems = _listed(parsed, folder.ids) if folder.ids else sorted(files)
    if stems and not any(stem in files for stem in stems):
        parsed.add_fault("missing-split", folder.ids or folder.images, "none of its images has an XML file")
        return []
    entries = []
    for stem, root in zip(stems, in_threads(_parse, [files.get(stem) for stem in stems]), strict=True):
        file = files.get(stem, folder.annotations / f"{stem}.xml")
        if isinstance(root, Fault):
            parsed.faults.append(root)
            images.pop(stem, None)
            continue
        image = images.get(stem) or _named_image(folder, root) or folder.images / f"{stem}.jpg"
        entries.append(_Entry(image, file, root))
    if folder.ids is None:
        taken = {entry.image for entry in entries}
        spare = [image for image in images.values() if image not in taken]
        entries += [_Entry(image, folder.annotations / f"{image.stem}.xml", None) for image in spare]
    _check_missing(parsed, entries)
    return sorted(entries, key=lambda entry: entry.image) if folder.ids is None else entries


def _check_missing(parsed: ParsedDataset, entries: Sequence[_Entry]) -> None:
    for entry in entries:
        if not entry.image.is_file():
            parsed.add_fault("missing-image", entry.file, f"{entry.image} does not exist")
        elif entry.root is None:
            parsed.add_fault("missing-annotation", entry.file, f"does not exist, though {entry.image} does")


def _listed(parsed: ParsedDataset, ids: Path) -> list[str]:
    """The ids in a list file; a fault is recorded for one that occurs twice."""
    lines = [line.strip() for line in (read_text(ids, parsed) or "").splitlines() if line.strip()]
    for stem, count in Counter(lines).items():
        if count > 1:
            parsed.add_fault("duplicate-image", ids, f"{stem} is listed {count} times")
    return list(dict.fromkeys(lines))


def _parse(file: Path | None) -> ET.Element | Fault | None:
    """The root element, or the fault of a broken file; None for no file."""
    if file is None:
        return None
    try:
        root = ET.parse(file).getroot()
    except ET.ParseError as error:
        reason = str(error).partition(":")[0]
        return Fault("broken-file", f"{file}:{error.position[0]}", f"is not valid XML ({reason})")
    except (OSError, LookupError, ValueError) as error:
        return Fault("broken-file", str(file), f"cannot be read ({error})")
    if root.tag != "annotation":
        return Fault("broken-file", str(file), f"opens with <{root.tag}>, not <annotation>")
    return root


def _named_image(folder: Folder, root: ET.Element | None) -> Path | None:
    """The image that <filename> names, for an XML file of another name, or None."""
    name = _text(root, "filename") if root is not None else ""
    path = folder.images / Path(name.replace("\\", "/")).name
    return path if name and path.is_file() else None


def _text(element: ET.Element, tag: str) -> str:
    return (element.findtext(tag) or "").strip()


def _class_names(parsed: ParsedDataset, folder: Folder, entries_by_split: dict[str, list[_Entry]]) -> tuple[str, ...]:
    class_list = next(
        (f for f in (folder.annotations.parent / CLASS_LIST, parsed.root / CLASS_LIST) if f.is_file()), None
    )
    if class_list is not None:
        names = [line.strip() for line in (read_text(class_list, parsed) or "").split("\n") if line.strip()]
        check_names(parsed, class_list, names)
        return tuple(names)
    roots = [entry.root for entries in entries_by_split.values() for entry in entries if entry.root is not None]
    found = {_text(item, "name") for root in roots for item in root.iterfind("object")}
    check_names(parsed, folder.annotations, sorted(found - {""}))
    return tuple(sorted(found - {""}))


def _image(parsed: ParsedDataset, entry: _Entry, number: int, positions: dict[str, int]) -> ParsedImage:
    image = ParsedImage(entry.image, 0, 0, number, str(entry.file))
    if entry.root is None:
        return image
    image.width, image.height = (_side_length(parsed, entry, tag) for tag in ("width", "height"))
    for i, item in enumerate(entry.root.iterfind("object"), 1):
        where, name = f"{entry.file}, object {i}", _text(item, "name")
        box = _box(item.find("bndbox"))
        if box is None:
            parsed.add_fault(
                "broken-record", where, "<bndbox> lacks one of xmin, ymin, xmax, ymax, or it is not a number"
            )
        elif not name:
            parsed.add_fault("broken-record", where, "has no <name>")
        elif name not in positions:
            parsed.add_fault("unknown-class", where, f"{name!r} is not in {CLASS_LIST}")
        else:
            image.add(box, positions[name], _text(item, "difficult").lower() in ("1", "true"), i)
    return image


def _side_length(parsed: ParsedDataset, entry: _Entry, tag: str) -> int:
    text = _text(entry.root, f"size/{tag}") if entry.root is not None else ""
    if re.fullmatch(r"\d{0,7}(\.\d*)?", text):
        return int(float(text or 0))
    parsed.add_fault("wrong-size", entry.file, f"<{tag}> is {text!r}, not a number; the image file's is used")
    return 0


def _box(element: ET.Element | None) -> tuple[float, float, float, float] | None:
    if element is None:
        return None
    try:
        x1, y1, x2, y2 = (float(_text(element, tag)) for tag in ("xmin", "ymin", "xmax", "ymax"))
    except ValueError:
        return None
    return x1, y1, x2, y2


def _check_unlisted(parsed: ParsedDataset, folders: dict[str, Folder]) -> None:
    """Record images of a devkit that are in none of its lists."""
    if all(folder.ids for folder in folders.values()):
        listed = {image.path for images in parsed.splits.values() for image in images}
        for folder in {folder.images for folder in folders.values()}:
            unlisted = [f for f in files_in(folder, IMAGE_SUFFIXES) if f not in listed]
            if unlisted:
                parsed.add_fault(
                    "unlisted-image", folder, f"{len(unlisted)} images are in no list ({unlisted[0].name}, ...)"
                )


def write(out: Path, split: str, records: Sequence[Record], image_names: Sequence[str], names: Sequence[str]) -> None:
    """Write the annotations of one split; its images belong into `image_folder`.

    Ignored objects are written as ``difficult``. `classes.txt` keeps all classes, also those without objects.
    """
    (out / "Annotations").mkdir(parents=True, exist_ok=True)
    for record, name in zip(records, image_names, strict=True):
        tree = _document(record, name, names)
        ET.indent(tree)
        tree.write(out / "Annotations" / f"{Path(name).stem}.xml", encoding="utf-8")
    (out / CLASS_LIST).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    if split != "all":
        (out / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        stems = "".join(f"{Path(name).stem}\n" for name in image_names)
        (out / "ImageSets" / "Main" / f"{split}.txt").write_text(stems, encoding="utf-8")


def _document(record: Record, image_name: str, names: Sequence[str]) -> ET.ElementTree:
    root = ET.Element("annotation")
    _add(root, folder="JPEGImages", filename=image_name)
    _add(ET.SubElement(root, "size"), width=record.width, height=record.height, depth=3)
    _add(root, segmented=0)
    for box, label, ignore in zip(record.boxes_N4.tolist(), record.labels_N, record.ignore_N, strict=True):
        item = ET.SubElement(root, "object")
        _add(item, name=names[label], pose="Unspecified", truncated=0, difficult=int(ignore))
        _add(
            ET.SubElement(item, "bndbox"), **dict(zip(("xmin", "ymin", "xmax", "ymax"), map(_number, box), strict=True))
        )
    return ET.ElementTree(root)


def _add(parent: ET.Element, **children: object) -> None:
    for tag, value in children.items():
        ET.SubElement(parent, tag).text = str(value)


def _number(value: float) -> str:
    """The shortest text that reads back as the same number; whole numbers without a point."""
    return str(int(value)) if value.is_integer() else repr(value)


def image_folder(out: Path, split: str) -> Path:
    """Where the images of a split belong."""
    return out / "JPEGImages"

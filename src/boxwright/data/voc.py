"""PASCAL VOC XML: `Annotations/`, `JPEGImages/` and `ImageSets/Main/`, or plain folders of XML beside images.

Corners are taken as written, as pixel edges counted from 0. The original devkit counted pixels from 1, most tools of
today do not, and no file says which; the difference is one pixel at most, and taking the numbers unchanged makes every
round trip exact.

VOC has no class list. The classes are those of `classes.txt` (one name a line) beside `Annotations/`, or else the
sorted names of all objects. `difficult` becomes ignore.
"""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from boxwright.data.faults import Fault
from boxwright.data.folders import files_in
from boxwright.data.formats.shapes import Box
from boxwright.data.image_index import ImageIndex, clean_name, fold
from boxwright.data.parsed import (
    ParsedDataset,
    ParsedImage,
    check_names,
    fill_sizes,
    in_threads,
    listed_names,
    merged_lists,
    read_text,
)
from boxwright.data.records import Record
from boxwright.data.voc_boxes import boxes_of, text_of
from boxwright.data.voc_folders import Folder, listed_stem
from boxwright.files import is_file
from boxwright.images import IMAGE_SUFFIXES

CLASS_LIST = "classes.txt"


def read(root: Path, folders: dict[str, list[Folder]]) -> ParsedDataset:
    """Parse the folders of a data set, given by split (`voc_folders.find`)."""
    parsed = ParsedDataset(root, "voc")
    index = ImageIndex(parsed)
    entries_by_split = {
        split: [entry for folder in each for entry in _parse_folder(parsed, index, folder)]
        for split, each in folders.items()
    }
    every = [folder for each in folders.values() for folder in each]
    parsed.names = _class_names(parsed, every, entries_by_split)
    positions = {name: i for i, name in enumerate(parsed.names)}
    for split, each in folders.items():
        images = [_image(parsed, entry, i + 1, positions) for i, entry in enumerate(entries_by_split[split])]
        fill_sizes(parsed, images)
        parsed.splits[split] = images
        if not images:
            parsed.add_fault("empty-split", each[0].ids or each[0].images, f"the split {split!r} has no images")
    annotations = [entry.annotation for entries in entries_by_split.values() for entry in entries if entry.annotation]
    if derived := sum(item.derived for annotation in annotations for item in annotation.objects):
        parsed.add_fault("derived-box", root, f"{derived} objects have another shape but no <bndbox>")
    parsed.splits = {split: images for split, images in parsed.splits.items() if images}
    index.finish()
    _check_unlisted(parsed, every)
    return parsed


class _Object(NamedTuple):
    """An <object>, with what `boxes_of` gives."""

    name: str
    ignore: bool
    boxes: list[Box | str]
    derived: bool


class _Annotation(NamedTuple):
    """What is used of an XML file: a tree of elements takes ten times the memory."""

    name: str
    width: str
    height: str
    objects: list[_Object]


@dataclass(frozen=True)
class _Entry:
    """One image and its XML file; None for a background image without one."""

    image: Path
    file: Path
    annotation: _Annotation | None


def _parse_folder(parsed: ParsedDataset, index: ImageIndex, folder: Folder) -> list[_Entry]:
    """The images of a split with their XML; broken files are left out, and faults recorded."""
    files = {file.stem: file for file in files_in(folder.annotations, [".xml"])}
    stems = _listed(parsed, folder.ids, files) if folder.ids else sorted(files)
    if stems and not any(stem in files for stem in stems):
        parsed.add_fault("missing-split", folder.ids or folder.images, "none of its images has an XML file")
        return []
    images = files_in(folder.images, IMAGE_SUFFIXES)
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for image in images:
        by_stem[image.stem].append(image)
    entries, broken = [], set()
    for stem, annotation in zip(stems, in_threads(_parse, [files.get(stem) for stem in stems]), strict=True):
        file = files.get(stem, folder.annotations / f"{stem}.xml")
        if isinstance(annotation, Fault):
            parsed.faults.append(annotation)
            broken |= set(by_stem[stem])
        else:
            image = _image_of(parsed, index, folder, by_stem.get(stem, []), file, annotation)
            entries.append(_Entry(image, file, annotation))
    taken = {entry.image for entry in entries} | broken
    whole = folder.ids is None and not folder.shared
    spare = [image for image in images if image not in taken] if whole else []
    entries += [_Entry(image, folder.annotations / f"{image.stem}.xml", None) for image in spare]
    _check_entries(parsed, entries)
    return sorted(entries, key=lambda entry: entry.image) if folder.ids is None else entries


def _image_of(
    parsed: ParsedDataset,
    index: ImageIndex,
    folder: Folder,
    same: Sequence[Path],
    file: Path,
    annotation: _Annotation | None,
) -> Path:
    """The image of an XML file: of those with its stem (`same`) the one that <filename> names, else any it names."""
    name = "" if annotation is None else annotation.name
    base = fold(clean_name(name).rpartition("/")[2])
    named = [image for image in same if fold(image.name) == base]
    if named or len(same) == 1:
        return (named or same)[0]
    if same:
        listed = " and ".join(image.name for image in same)
        parsed.add_fault("ambiguous-image", file, f"may belong to {listed}; its <filename> is {name!r}")
        return same[0]
    known = name and index.match(name, folder.images)
    return index.find(name if known else file.stem, folder.images, file)


def _check_entries(parsed: ParsedDataset, entries: Sequence[_Entry]) -> None:
    """Record images without an XML file, and images to which several files belong."""
    users: dict[Path, list[str]] = defaultdict(list)
    for entry in entries:
        if entry.annotation is not None:
            users[entry.image].append(entry.file.name)
        elif is_file(entry.image):
            parsed.add_fault("missing-annotation", entry.file, f"does not exist, though {entry.image} does")
    for image, files in users.items():
        if len(files) > 1 and is_file(image):
            parsed.add_fault("duplicate-image", image, f"is the image of {' and '.join(files[:4])}")


def _listed(parsed: ParsedDataset, ids: Path, files: dict[str, Path]) -> list[str]:
    """The ids in a list file, as XML files have them; a fault is recorded for one that occurs twice."""
    lines = [line.strip() for line in (read_text(ids, parsed) or "").splitlines() if line.strip()]
    own = {fold(stem): stem for stem in files}
    stems = [line if line in files else own.get(fold(listed_stem(line)), listed_stem(line)) for line in lines]
    for stem, count in Counter(stems).items():
        if count > 1:
            parsed.add_fault("duplicate-image", ids, f"{stem} is listed {count} times")
    return list(dict.fromkeys(stems))


def _parse(file: Path | None) -> _Annotation | Fault | None:
    """What a file says, or the fault of a broken one; None for no file."""
    if file is None:
        return None
    try:
        root = _root_element(file.read_bytes())
    except ET.ParseError as error:
        reason = str(error).partition(":")[0]
        return Fault("broken-file", f"{file}:{error.position[0]}", f"is not valid XML ({reason})")
    except (OSError, LookupError, ValueError) as error:
        return Fault("broken-file", str(file), f"cannot be read ({error})")
    if root.tag != "annotation":
        return Fault("broken-file", str(file), f"opens with <{root.tag}>, not <annotation>")
    width, height = (text_of(root, f"size/{tag}") for tag in ("width", "height"))
    objects = [_object(item) for item in root.iterfind("object") if not _flag(item, "deleted")]  # so LabelMe marks them
    return _Annotation(text_of(root, "filename"), width, height, objects)


def _object(item: ET.Element) -> _Object:
    boxes, derived = boxes_of(item)
    return _Object(sys.intern(text_of(item, "name")), _flag(item, "difficult"), boxes, derived)


def _flag(item: ET.Element, tag: str) -> bool:
    return text_of(item, tag).lower() in ("1", "true")


def _root_element(content: bytes) -> ET.Element:
    """The root of an XML file; encodings that the parser lacks, such as GB2312, are decoded by Python.

    Raises:
        ET.ParseError: it is not valid XML.
        ValueError, LookupError: it is not text in the encoding that it declares, or there is no such encoding.
    """
    plain = content.removeprefix(b"\xef\xbb\xbf")
    declared = re.match(rb"""\s*<\?xml[^>]*?encoding\s*=\s*["']([\w.:-]+)["']""", plain)
    name = declared[1].decode("ascii", "replace") if declared else "utf-8"
    if name.lower().startswith(("utf", "us-ascii", "iso-8859")):
        return ET.fromstring(content)
    encoding = "gb18030" if name.lower() in ("gb2312", "gbk") else name  # which holds both, as files often need
    return ET.fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", plain.decode(encoding)))


def _class_names(
    parsed: ParsedDataset, folders: Sequence[Folder], entries_by_split: dict[str, list[_Entry]]
) -> tuple[str, ...]:
    places = dict.fromkeys(folder.annotations.parent for folder in folders)
    lists = [file for place in places if (file := place / CLASS_LIST).is_file()] or [Path(parsed.root, CLASS_LIST)]
    if lists[0].is_file():
        return merged_lists(parsed, {file: listed_names(parsed, file) for file in lists})
    every = [entry.annotation for entries in entries_by_split.values() for entry in entries if entry.annotation]
    found = {item.name for annotation in every for item in annotation.objects}
    check_names(parsed, folders[0].annotations, sorted(found - {""}))
    return tuple(sorted(found - {""}))


def _image(parsed: ParsedDataset, entry: _Entry, number: int, positions: dict[str, int]) -> ParsedImage:
    image = ParsedImage(entry.image, 0, 0, number, str(entry.file))
    if entry.annotation is None:
        return image
    sizes = {"width": entry.annotation.width, "height": entry.annotation.height}
    image.width, image.height = (_side_length(parsed, entry.file, tag, text) for tag, text in sizes.items())
    for i, (name, ignore, boxes, _) in enumerate(entry.annotation.objects, 1):
        where = f"{entry.file}, object {i}"
        for box in boxes:
            if isinstance(box, str):
                parsed.add_fault("broken-record", where, box)
            elif not name:
                parsed.add_fault("broken-record", where, "has no <name>")
            elif name not in positions:
                parsed.add_fault("unknown-class", where, f"{name!r} is not in {CLASS_LIST}")
            else:
                image.add(box, positions[name], ignore, i)
    return image


def _side_length(parsed: ParsedDataset, file: Path, tag: str, text: str) -> int:
    if re.fullmatch(r"\d{0,7}(\.\d*)?", text):
        return int(float(text or 0))
    parsed.add_fault("wrong-size", file, f"<{tag}> is {text!r}, not a number; the image file's is used")
    return 0


def _check_unlisted(parsed: ParsedDataset, folders: Sequence[Folder]) -> None:
    """Record images that are in none of the lists, or of several folders of XML files in none."""
    if all(folder.ids or folder.shared for folder in folders):
        listed = {image.path for images in parsed.splits.values() for image in images}
        for folder in {folder.images for folder in folders}:
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

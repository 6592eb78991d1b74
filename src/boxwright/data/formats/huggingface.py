"""Hugging Face's image folder: `metadata.jsonl` beside the images of a split, a line per image.

Source: https://huggingface.co/docs/datasets/image_dataset#object-detection. `objects` holds lists of equal length:
`bbox` (``[x, y, width, height]`` in pixels) and `categories`. Where these are numbers, their names are taken from
`class_label` in the front matter of `README.md`, beside the file or above it.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from boxwright.data.formats.collection import AnnotatedImage, Collection, text_size
from boxwright.data.formats.shapes import MalformedError, size_box
from boxwright.data.parsed import read_text
from boxwright.data.records import Record

MAX_UNPACKED = 2**32  # bytes of text in a .gz file
_BLOCK = 2**20

_BOXES, _CLASSES = ("bbox", "bboxes", "boxes"), ("categories", "category", "labels", "label", "classes", "class")


def read(collection: Collection, file: Path, split: str) -> None:
    """Add the images of a file."""
    names = _class_names(collection, file)
    for number, line in lines(collection, file):
        row = collection.parse_json(line, f"{file}:{number}")
        if row is not None:
            collection.attempt(f"{file}:{number}", _read_image, collection, row, names, file, split, number)


def lines(collection: Collection, file: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not empty, with their numbers; of a ``.gz`` file unpacked."""
    packed = file.suffix.lower() == ".gz"
    text = _unpack(collection, file) if packed else read_text(file, collection.parsed)
    for number, line in enumerate((text or "").split("\n"), 1):
        if line.strip():
            yield number, line


def _unpack(collection: Collection, file: Path) -> str | None:
    try:
        content = bytearray()
        with gzip.open(file) as stream:
            while len(content) <= MAX_UNPACKED and (block := stream.read(_BLOCK)):  # read(n) takes memory for n at once
                content += block
        if len(content) <= MAX_UNPACKED:
            return content.decode("utf-8-sig")
        what = f"unpacks to more than {MAX_UNPACKED // 2**30} GB"
    except (OSError, EOFError, ValueError, zlib.error) as error:
        what = f"cannot be unpacked as UTF-8 text ({error})"
    collection.parsed.add_fault("broken-file", file, what)
    return None


def _read_image(
    collection: Collection, row: dict[str, Any], names: dict[str, str], file: Path, split: str, line: int
) -> None:
    image = collection.new_image(row["file_name"], file, split, f":{line}")
    image.width, image.height = text_size(row)
    objects = row.get("objects") or {}
    boxes = next((objects[key] for key in _BOXES if key in objects), [])
    labels = next((objects[key] for key in _CLASSES if key in objects), [])
    if not isinstance(boxes, list) or not isinstance(labels, list) or len(boxes) != len(labels):
        raise MalformedError("has not as many categories as boxes in `objects`")
    ignore = objects.get("ignore") or [False] * len(boxes)
    for i, (box, label) in enumerate(zip(boxes, labels, strict=True), 1):
        collection.attempt(f"{image.source}, object {i}", _add, image, names, box, label, i, bool(ignore[i - 1]))


def _add(image: AnnotatedImage, names: dict[str, str], box: Any, label: Any, mark: int, ignore: bool) -> None:
    image.add(names.get(str(label), label), size_box(box), mark, ignore)


def _class_names(collection: Collection, file: Path) -> dict[str, str]:
    """Class names by number, from the front matter of a README.md; they are the list of classes."""
    for folder in (file.parent, file.parent.parent):
        readme = folder / "README.md"
        parts = (read_text(readme, collection.parsed) or "").split("---\n") if readme.is_file() else []
        try:
            front = yaml.load(parts[1], Loader=yaml.BaseLoader) if len(parts) > 2 else None  # noqa: S506 - it makes only texts
        except (yaml.YAMLError, RecursionError, ValueError):
            front = None
        if found := _find_names(front):
            collection.declare(found.values())
            return found
    return {}


def _find_names(node: Any, depth: int = 0) -> dict[str, str]:
    """The names of the first `class_label` in a tree of settings."""
    if depth > 12 or not isinstance(node, (dict, list)):
        return {}
    if isinstance(node, dict) and isinstance(node.get("class_label"), dict):
        names = node["class_label"].get("names")
        pairs = names.items() if isinstance(names, dict) else enumerate(names) if isinstance(names, list) else ()
        return {str(id_): str(name).strip() for id_, name in pairs}
    parts = node.values() if isinstance(node, dict) else node
    return next((found for part in list(parts)[:100] if (found := _find_names(part, depth + 1))), {})


def write(out: Path, split: str, records: Sequence[Record], image_names: Sequence[str], names: Sequence[str]) -> None:
    """Write `metadata.jsonl` of one split, beside its images, and `README.md` with the list of classes."""
    folder = image_folder(out, split)
    rows = [
        {
            "file_name": name,
            "width": record.width,
            "height": record.height,
            "objects": {
                "bbox": [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in record.boxes_N4.tolist()],
                "categories": record.labels_N.tolist(),
                "ignore": record.ignore_N.tolist(),
            },
        }
        for record, name in zip(records, image_names, strict=True)
    ]
    text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(text, encoding="utf-8")
    (out / "README.md").write_text(_readme(names), encoding="utf-8")


def _readme(names: Sequence[str]) -> str:
    """Front matter with the data set's features, from which `datasets` and the readers know the classes."""
    label = {"class_label": {"names": {str(i): name for i, name in enumerate(names)}}}
    objects = [
        {"name": "bbox", "sequence": {"sequence": "float64", "length": 4}},
        {"name": "categories", "sequence": label},
        {"name": "ignore", "sequence": "bool"},
    ]
    features = [
        {"name": "image", "dtype": "image"},
        {"name": "width", "dtype": "int64"},
        {"name": "height", "dtype": "int64"},
        {"name": "objects", "struct": objects},
    ]
    front = {"task_categories": ["object-detection"], "dataset_info": {"features": features}}
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n"


def image_folder(out: Path, split: str) -> Path:
    """Where the images of a split belong."""
    return out if split == "all" else out / split

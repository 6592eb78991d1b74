"""YOLO folders: `data.yaml` with the class names and the folder of each split, and a text file of boxes per image.

A row is ``class cx cy w h`` in fractions of the image, or a polygon ``class x1 y1 x2 y2 x3 y3 ...``, which becomes the
box around it. The format has neither `difficult` nor crowds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from boxwright.config import UserError
from boxwright.data.folders import files_in, in_order, split_name
from boxwright.data.parsed import ParsedDataset, ParsedImage, check_names, fill_sizes, in_threads, read_text
from boxwright.data.records import Record
from boxwright.images import IMAGE_SUFFIXES


def find(root: Path) -> Path | None:
    """The YAML file of a YOLO folder; None if it is none.

    Raises:
        UserError: several files could be it.
    """
    files = [f for f in files_in(root, [".yaml", ".yml"]) if f.stem == "data" or _names_classes(f)]
    chosen = [f for f in files if f.stem == "data"] or files
    if len(chosen) > 1:
        listed = ", ".join(f.name for f in chosen)
        raise UserError(f"{root} has several YAML files with class names ({listed}); give one of them by its path")
    return chosen[0] if chosen else None


def _names_classes(file: Path) -> bool:
    text = file.read_text(encoding="utf-8", errors="replace")
    return bool(re.search(r"^names\s*:", text, re.MULTILINE) and re.search(r"^(train|val)\s*:", text, re.MULTILINE))


def read(root: Path, file: Path) -> ParsedDataset:
    """Parse every split that the YAML file names."""
    parsed = ParsedDataset(root, "yolo")
    settings = _load(parsed, file)
    if settings is None:
        return parsed
    positions = _classes(parsed, file, settings)
    read_splits(parsed, in_order(_split_images(parsed, file, settings)), positions, "kpt_shape" in settings)
    return parsed


def read_splits(
    parsed: ParsedDataset, splits: dict[str, list[Path]], positions: dict[int, int], keypoints: bool = False
) -> None:
    """Add the images of each split, with their labels; `positions` has the class of each index in label files."""
    for split, images in splits.items():
        parsed.splits[split] = _images(parsed, images, positions, keypoints)


def _load(parsed: ParsedDataset, file: Path) -> dict[str, Any] | None:
    """The content of the YAML file with all scalars as text, so that a class `no` is not read as False."""
    text = read_text(file, parsed)
    if text is None:
        return None
    try:
        settings = yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        parsed.add_fault("broken-file", f"{file}:{line}", f"is not valid YAML ({error.problem})")
        return None
    except yaml.YAMLError as error:
        parsed.add_fault("broken-file", file, f"is not valid YAML ({' '.join(str(error).split())})")
        return None
    if not isinstance(settings, dict) or not isinstance(settings.get("names"), (list, dict)):
        parsed.add_fault("broken-file", file, "has no `names`, the list of classes")
        return None
    return settings


def _classes(parsed: ParsedDataset, file: Path, settings: dict[str, Any]) -> dict[int, int]:
    """Set the class names; return the class position of each index in label files."""
    names = settings["names"]
    if isinstance(names, list):
        names = dict(enumerate(names))
    try:
        rows = sorted((int(index), str(name).strip()) for index, name in names.items())
    except ValueError:
        parsed.add_fault("broken-file", file, "`names` has a key that is not a number")
        return {}
    parsed.names = tuple(name for _, name in rows)
    check_names(parsed, file, parsed.names)
    if str(settings.get("nc", len(rows))) != str(len(rows)):
        parsed.add_fault("class-count", file, f"`nc` is {settings['nc']} but `names` has {len(rows)} classes")
    return {index: position for position, (index, _) in enumerate(rows)}


def _split_images(parsed: ParsedDataset, file: Path, settings: dict[str, Any]) -> dict[str, list[Path]]:
    """The image files of each split."""
    splits: dict[str, list[Path]] = {}
    for key, value in settings.items():
        split = split_name(key) or (key if _is_own_split(file, settings, key) else None)
        if split is None or not value:
            continue
        entries = value if isinstance(value, list) else [value]
        found = [
            images for entry in entries if (images := _entry_images(parsed, file, settings, key, entry)) is not None
        ]
        images = list(dict.fromkeys(image for part in found for image in part))
        if images:
            splits[split] = splits.get(split, []) + images
        elif found:
            parsed.add_fault("empty-split", file, f"`{key}` has no images")
    if not splits and not parsed.faults:
        parsed.add_fault("missing-split", file, "names no folder under `train`, `val` or `test`")
    return splits


def _is_own_split(file: Path, settings: dict[str, Any], key: str) -> bool:
    """Whether a key of an unusual name is a split: its folder has the same name."""
    value, root = settings[key], file.parent / str(settings.get("path") or ".")
    return isinstance(value, str) and Path(value).name == key and (root / value).is_dir()


def _entry_images(
    parsed: ParsedDataset, file: Path, settings: dict[str, Any], key: str, entry: object
) -> list[Path] | None:
    """The images of one folder or list of paths; None, and a fault recorded, if it does not exist."""
    root = file.parent / str(settings.get("path") or ".")
    text = str(entry).replace("\\", "/")
    source = _first_existing([root / text, file.parent / text, file.parent / re.sub(r"^(\.\./)+", "", text)])
    if source is None:
        parsed.add_fault("missing-split", file, f"`{key}: {entry}` does not exist ({root / text})")
        return None
    if source.is_file():
        return _listed(parsed, source, root)
    return sorted(p for p in source.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())


def _listed(parsed: ParsedDataset, file: Path, root: Path) -> list[Path]:
    """The images in a text file of paths, relative to the file or to the data set."""
    images = []
    for number, line in enumerate((read_text(file, parsed) or "").split("\n"), 1):
        if text := line.strip().replace("\\", "/"):
            image = _first_existing([file.parent / text, root / text])
            if image is None:
                parsed.add_fault("missing-image", f"{file}:{number}", f"{file.parent / text} does not exist")
            images.append(image or file.parent / text)
    return images


def _first_existing(paths: Sequence[Path]) -> Path | None:
    return next((path for path in paths if path.exists()), None)


def label_path(image: Path) -> Path:
    """The label file of an image: with the last folder `images` replaced by `labels`, or beside the image."""
    parts = list(image.parent.parts)
    for i in reversed(range(len(parts))):
        if parts[i] == "images":
            parts[i] = "labels"
            labels = Path(*parts)
            return labels / f"{image.stem}.txt"
    return image.with_suffix(".txt")


def _images(
    parsed: ParsedDataset, paths: Sequence[Path], positions: dict[int, int], keypoints: bool
) -> list[ParsedImage]:
    files = [label_path(path) for path in paths]
    images = [ParsedImage(p, 0, 0, i, str(f), ":{}") for i, (p, f) in enumerate(zip(paths, files, strict=True), 1)]
    fill_sizes(parsed, images)
    texts = in_threads(lambda file: file.read_bytes() if file.is_file() else None, files)
    for image, text in zip(images, texts, strict=True):
        if text is not None:
            _annotate(parsed, image, text, positions, keypoints)
    _check_label_files(parsed, images, texts)
    return images


def _check_label_files(parsed: ParsedDataset, images: Sequence[ParsedImage], texts: Sequence[bytes | None]) -> None:
    """Record label files without an image, and a split without any label file."""
    if all(text is None for text in texts):
        parsed.add_fault("missing-split", Path(images[0].source).parent, "holds no label file for any image of a split")
    known = {image.source for image in images}
    for folder in sorted({Path(image.source).parent for image in images}):
        if folder.name == "labels" or folder.parent.name == "labels":
            orphans = [f for f in files_in(folder, [".txt"]) if str(f) not in known and f.stem != "classes"]
            for file in orphans:
                parsed.add_fault("orphan-annotation", file, "there is no image of this name")


def _annotate(
    parsed: ParsedDataset, image: ParsedImage, text: bytes, positions: dict[int, int], keypoints: bool
) -> None:
    for number, line in enumerate(text.decode("utf-8-sig", errors="replace").split("\n"), 1):
        columns = line.split()
        if not columns:
            continue
        where = f"{image.source}:{number}"
        row = _parse_row(columns, keypoints)
        if isinstance(row, str):
            parsed.add_fault("broken-record", where, row)
        elif row[0] not in positions:
            parsed.add_fault("unknown-class", where, f"there is no class {row[0]} in `names`")
        else:
            x1, y1, x2, y2 = row[1]
            w, h = image.width, image.height
            image.add((x1 * w, y1 * h, x2 * w, y2 * h), positions[row[0]], False, number)


def _parse_row(columns: Sequence[str], keypoints: bool) -> tuple[int, tuple[float, float, float, float]] | str:
    """Class index and box xyxy in fractions of the image, or what is wrong with the row."""
    try:
        label, *values = map(float, columns)
    except ValueError:
        return f"a word is not a number: {' '.join(columns)[:60]}"
    if not label.is_integer():
        return f"the class {columns[0]} is not a whole number"
    if len(values) == 4 or (keypoints and len(values) > 4):
        cx, cy, w, h = values[:4]
        return int(label), (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
    if len(values) >= 6 and len(values) % 2 == 0:
        return int(label), (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
    return f"{len(columns)} columns are neither a box (5) nor a polygon (7, 9, 11, ...)"


def write(out: Path, split: str, records: Sequence[Record], image_names: Sequence[str]) -> None:
    """Write the labels of one split; its images belong into `image_folder`. Ignore flags are lost.

    Fractions have 9 decimals: a thousandth of a pixel in an image of a million pixels.
    """
    labels = out / "labels" / split
    labels.mkdir(parents=True, exist_ok=True)
    for record, name in zip(records, image_names, strict=True):
        (labels / f"{Path(name).stem}.txt").write_text(_rows(record), encoding="utf-8")


def _rows(record: Record) -> str:
    size = (record.width, record.height)
    rows = []
    for (x1, y1, x2, y2), label in zip(record.boxes_N4.tolist(), record.labels_N, strict=True):
        fractions = ((x1 + x2) / 2 / size[0], (y1 + y2) / 2 / size[1], (x2 - x1) / size[0], (y2 - y1) / size[1])
        rows.append(" ".join([str(label), *(f"{value:.9f}" for value in fractions)]) + "\n")
    return "".join(rows)


def write_yaml(out: Path, splits: Sequence[str], names: Sequence[str]) -> None:
    """Write `data.yaml`; without `path`, folders are relative to the file, here and in other tools."""
    settings = {**{split: f"images/{split}" for split in splits}, "names": dict(enumerate(names))}
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    (out / "data.yaml").write_text(text, encoding="utf-8")


def image_folder(out: Path, split: str) -> Path:
    """Where the images of a split belong."""
    return out / "images" / split

"""YOLO folders: `data.yaml` with the class names and the folder of each split, and a text file of boxes per image.

A row is ``class cx cy w h`` in fractions of the image, or a polygon ``class x1 y1 x2 y2 x3 y3 ...``, which becomes the
box around it. The format has neither `difficult` nor crowds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from boxwright.config import UserError
from boxwright.data.folders import any_case, can_be_a_file, files_in, in_order, split_name, split_of, suffix_of, walk
from boxwright.data.image_index import ImageIndex, clean_name, fold
from boxwright.data.label_files import LabelFiles
from boxwright.data.parsed import ParsedDataset, ParsedImage, check_names, fill_sizes, in_threads, loose_text, read_text
from boxwright.data.records import Record
from boxwright.images import IMAGE_SUFFIXES

_DEEPEST = 10  # folders of a path that is written for another place


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
    text = loose_text(file.read_bytes())
    return bool(re.search(r"^names\s*:", text, re.MULTILINE) and re.search(r"^(train|val)\s*:", text, re.MULTILINE))


def read(root: Path, file: Path) -> ParsedDataset:
    """Parse every split that the YAML file names."""
    parsed = ParsedDataset(root, "yolo")
    settings = _load(parsed, file)
    if settings is None:
        return parsed
    positions = _classes(parsed, file, settings)
    index = ImageIndex(parsed, _root(file, settings))
    splits = in_order(_split_images(parsed, index, file, settings))
    read_splits(parsed, splits, lambda _: positions, "kpt_shape" in settings)
    index.finish()
    return parsed


def _root(file: Path, settings: dict[str, Any]) -> Path:
    given = str(settings.get("path") or ".")
    root = file.parent / given
    return root if can_be_a_file(given) and root.is_dir() else file.parent


def read_splits(
    parsed: ParsedDataset,
    splits: dict[str, list[Path]],
    positions_in: Callable[[Path], dict[int, int]],
    keypoints: bool = False,
) -> None:
    """Add the images of each split, with their labels; `positions_in` gives the class of each index in a label file."""
    labels = LabelFiles(parsed, [image for images in splits.values() for image in images])
    in_pixels: list[str] = []
    for split, images in splits.items():
        parsed.splits[split] = _images(parsed, labels, images, positions_in, keypoints, in_pixels)
    if in_pixels:
        what = (
            f"{len(in_pixels):,} label files have pixels, not fractions of the image (first {Path(in_pixels[0]).name})"
        )
        parsed.add_fault("not-fractions", Path(in_pixels[0]).parent, what)


def _load(parsed: ParsedDataset, file: Path) -> dict[str, Any] | None:
    """The content of the YAML file with all scalars as text, so that a class `no` is not read as False."""
    text = read_text(file, parsed)
    if text is None:
        return None
    try:
        settings = yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506 - it makes only texts
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        parsed.add_fault("broken-file", f"{file}:{line}", f"is not valid YAML ({error.problem})")
        return None
    except yaml.YAMLError as error:
        parsed.add_fault("broken-file", file, f"is not valid YAML ({' '.join(str(error).split())})")
        return None
    except RecursionError:
        parsed.add_fault("broken-file", file, "is nested too deeply")
        return None
    if isinstance(settings, dict) and isinstance(settings.get("names"), str):
        settings["names"] = _listed_names(parsed, file, settings)
    if not isinstance(settings, dict) or not isinstance(settings.get("names"), (list, dict)):
        parsed.add_fault("broken-file", file, "has no `names`, the list of classes")
        return None
    return settings


def _listed_names(parsed: ParsedDataset, file: Path, settings: dict[str, Any]) -> list[str] | None:
    """The classes in a file of one name a line, such as darknet's `obj.names`; None if there is no such file."""
    path = Path(settings["names"].replace("\\", "/"))
    found = [
        f for root in (_root(file, settings), file.parent) if (f := any_case(root, path)) is not None and f.is_file()
    ]
    text = read_text(found[0], parsed) if found else None
    return None if text is None else [line.strip() for line in text.split("\n") if line.strip()]


def _classes(parsed: ParsedDataset, file: Path, settings: dict[str, Any]) -> dict[int, int]:
    """Set the class names; return the class position of each index in label files."""
    names = settings["names"]
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not all(isinstance(name, str) for name in names.values()):
        parsed.add_fault("broken-file", file, "`names` has a class that is a list or a mapping, not text")
        return {}
    try:
        rows = sorted((int(index), name.strip()) for index, name in names.items())
    except (ValueError, TypeError):
        parsed.add_fault("broken-file", file, "`names` has a key that is not a number")
        return {}
    parsed.names = tuple(name for _, name in rows)
    check_names(parsed, file, parsed.names)
    if str(settings.get("nc", len(rows))) != str(len(rows)):
        parsed.add_fault("class-count", file, f"`nc` is {settings['nc']} but `names` has {len(rows)} classes")
    return {index: position for position, (index, _) in enumerate(rows)}


def _split_images(
    parsed: ParsedDataset, index: ImageIndex, file: Path, settings: dict[str, Any]
) -> dict[str, list[Path]]:
    """The image files of each split."""
    splits: dict[str, list[Path]] = {}
    for key, value in settings.items():
        split = split_name(key) or (key if _is_own_split(file, settings, key) else None)
        if split is None or not value:
            continue
        entries = value if isinstance(value, list) else [value]
        parts = [_entry_images(parsed, index, file, settings, key, entry) for entry in entries]
        found = [images for images in parts if images is not None]
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
    value, root = settings[key], _root(file, settings)
    named = isinstance(value, str) and Path(value).name == key and can_be_a_file(value)
    return named and (root / value).is_dir()


def _entry_images(
    parsed: ParsedDataset, index: ImageIndex, file: Path, settings: dict[str, Any], key: str, entry: object
) -> list[Path] | None:
    """The images of one folder or list of paths; None, and a fault recorded, if it does not exist."""
    text = str(entry).replace("\\", "/")
    shorter = re.sub(r"^(\.\./)+", "", text)
    places = [(index.root, text), (file.parent, text), (file.parent, shorter)]
    places += [(index.root, ending) for ending in _endings(clean_name(text))]
    source = next((path for root, name in places if (path := any_case(root, Path(name))) is not None), None)
    source = source or _folder_elsewhere(parsed, index.root, file, f"{key}: {entry}", clean_name(text))
    if source is None:
        return None
    if source.is_file():
        return _listed(parsed, index, source)
    return sorted(Path(folder, n) for folder, names in walk(source) for n in names if suffix_of(n) in IMAGE_SUFFIXES)


def _endings(path: str) -> list[str]:
    """A path, and it without its first folders, as long as it still names a split: `C:/me/set/train/images`."""
    parts = path.split("/")
    shorter = ["/".join(parts[i:]) for i in range(max(1, len(parts) - _DEEPEST), len(parts))]
    return [path] * bool(path) + [ending for ending in shorter if split_of(Path(ending))]


def _folder_elsewhere(parsed: ParsedDataset, root: Path, file: Path, line: str, name: str) -> Path | None:
    """The only folder of images below `root` whose path ends in `name`; a fault is recorded if there is none."""
    ending = fold(f"/{name}")
    with_images = (folder for folder, names in walk(root) if any(suffix_of(n) in IMAGE_SUFFIXES for n in names))
    found = [Path(folder) for folder in with_images if fold(folder.replace("\\", "/")).endswith(ending)]
    short = [str(folder.relative_to(root)) for folder in found]
    if len(found) == 1:
        parsed.add_fault("found-image", file, f"`{line}` is found as {short[0]}")
        return found[0]
    where = f"may be {' and '.join(short[:3])}" if found else f"does not exist below {root}"
    parsed.add_fault("missing-split", file, f"`{line}` {where}")
    return None


def _listed(parsed: ParsedDataset, index: ImageIndex, file: Path) -> list[Path]:
    """The images in a text file of paths, relative to the file or to the data set."""
    images = []
    for number, line in enumerate((read_text(file, parsed) or "").split("\n"), 1):
        if text := line.strip():
            beside = index.existing(str(file.parent / text.replace("\\", "/")))
            images.append(beside or index.find(text, index.root, f"{file}:{number}"))
    return images


def _images(
    parsed: ParsedDataset,
    labels: LabelFiles,
    paths: Sequence[Path],
    positions_in: Callable[[Path], dict[int, int]],
    keypoints: bool,
    in_pixels: list[str],
) -> list[ParsedImage]:
    """The images of a split; label files of pixels are added to `in_pixels`."""
    files = [labels.of(path) for path in paths]
    sources = [file or labels.folder(path) / f"{path.stem}.txt" for file, path in zip(files, paths, strict=True)]
    images = [ParsedImage(p, 0, 0, i, str(f), ":{}") for i, (p, f) in enumerate(zip(paths, sources, strict=True), 1)]
    fill_sizes(parsed, images)
    texts = in_threads(lambda file: file.read_bytes() if file is not None else None, files)
    for image, file, text in zip(images, files, texts, strict=True):
        if text is not None and file is not None and _annotate(parsed, image, text, positions_in(file), keypoints):
            in_pixels.append(image.source)
    if all(text is None for text in texts):
        parsed.add_fault("missing-split", Path(images[0].source).parent, "holds no label file for any image of a split")
    return images


def _annotate(
    parsed: ParsedDataset, image: ParsedImage, text: bytes, positions: dict[int, int], keypoints: bool
) -> bool:
    """Add the objects of a label file, unless it has pixels in every row: then return True."""
    rows: list[tuple[int, int, tuple[float, float, float, float]]] = []
    for number, line in enumerate(loose_text(text).split("\n"), 1):
        columns = line.split()
        if not columns:
            continue
        row = _parse_row(columns, keypoints)
        if isinstance(row, str):
            parsed.add_fault("broken-record", f"{image.source}:{number}", row)
        elif row[0] not in positions:
            parsed.add_fault("unknown-class", f"{image.source}:{number}", f"there is no class {row[0]} in `names`")
        else:
            rows.append((number, *row))
    w, h = image.width, image.height
    if rows and all(_is_in_pixels(box, w, h) for _, _, box in rows):
        return True
    for number, label, (x1, y1, x2, y2) in rows:
        image.add((x1 * w, y1 * h, x2 * w, y2 * h), positions[label], False, number)
    return False


def _is_in_pixels(box: tuple[float, float, float, float], width: int, height: int) -> bool:
    """Whether numbers that should be fractions lie inside the image as pixels, and far outside as fractions."""
    return max(box) > 8 and box[2] <= width + 2 and box[3] <= height + 2


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
    if len(values) == 5:
        return "6 columns are a box and its confidence, as predictions have it; labels have 5 columns"
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

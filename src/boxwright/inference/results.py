"""Files of results: COCO JSON and CSV, and Parquet if asked, written while the images come."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from boxwright.extras import how_to_install
from boxwright.files import csv_text, write_whole
from boxwright.runtime.coco import Records, write_coco
from boxwright.runtime.predictor_base import chunks

CSV_HEAD = ("file", "label", "score", "x1", "y1", "x2", "y2")
_GROUP = 1000  # images that a Parquet file stores together


def write_results(records: Iterable[Records], names: Sequence[str], out: Path, parquet: bool) -> None:
    """Write predictions.json and predictions.csv image by image; they get their names when everything is done.

    Args:
        records: of each image, with ids (`boxwright.runtime.coco.coco_records`).
        names: the classes.
        out: the folder.
        parquet: write predictions.parquet, too: one row per image, with lists of its objects.

    Raises:
        UserError: if the disk is full or not writable.
    """

    def fill(json_path: Path, csv_path: Path, *parquet_path: Path) -> None:
        with (
            json_path.open("w", encoding="utf-8") as json_file,
            csv_path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as csv_file,
        ):
            rows = _to_csv(records, names, csv_file)
            write_coco(_to_parquet(rows, names, *parquet_path) if parquet else rows, names, json_file)

    _write_all([out / f"predictions.{kind}" for kind in ("json", "csv", *["parquet"] * parquet)], fill)


def _write_all(paths: list[Path], fill: Callable[..., None], *temporaries: Path) -> None:
    """`write_whole` for several files at once."""
    if paths:
        write_whole(paths[0], lambda temporary: _write_all(paths[1:], fill, *temporaries, temporary))
    else:
        fill(*temporaries)


def require_parquet() -> None:
    """Raise `ModuleNotFoundError` with one clear line unless Parquet can be written."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(how_to_install("--parquet", error.name), name=error.name) from error


def _to_csv(records: Iterable[Records], names: Sequence[str], file: TextIO) -> Iterator[Records]:
    """The same records; each object becomes a row of the table."""
    table = csv.writer(file)
    table.writerow(CSV_HEAD)
    for image, rows in records:
        for row in rows:
            label = names[row["category_id"] - 1]
            table.writerow([csv_text(image["file_name"]), csv_text(label), row["score"], *_corners(row["bbox"])])
        yield image, rows


def _to_parquet(records: Iterable[Records], names: Sequence[str], path: Path) -> Iterator[Records]:
    """The same records; each image becomes a row of the table."""
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    numbers = pyarrow.list_(pyarrow.float64())
    objects = {"labels": pyarrow.list_(pyarrow.string()), "scores": numbers, "boxes": pyarrow.list_(numbers)}
    image = {"file": pyarrow.string(), "width": pyarrow.int32(), "height": pyarrow.int32()}
    schema = pyarrow.schema(image | objects)
    with ParquetWriter(path, schema) as table:
        for group in chunks(records, _GROUP):
            table.write_table(pyarrow.Table.from_pylist([_as_row(*record, names) for record in group], schema))
            yield from group


def _as_row(image: dict[str, Any], rows: list[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    return {
        "file": image["file_name"].encode("utf-8", "backslashreplace").decode(),
        "width": image["width"],
        "height": image["height"],
        "labels": [names[row["category_id"] - 1] for row in rows],
        "scores": [row["score"] for row in rows],
        "boxes": [_corners(row["bbox"]) for row in rows],
    }


def _corners(bbox: Sequence[float]) -> list[float]:
    x, y, width, height = bbox
    return [x, y, round(x + width, 3), round(y + height, 3)]

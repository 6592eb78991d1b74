"""The page of a comparison: recommendation, numbers, curves, and the same images for each detector."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from boxwright.checkpoints.detector_file import load_detector
from boxwright.comparison.advice import is_early
from boxwright.comparison.row import Row
from boxwright.comparison.settings import SharedSettings, short_name
from boxwright.data.cache import Cache
from boxwright.data.records import Record
from boxwright.drawing import colour, draw
from boxwright.evaluation.calibration import FLOOR
from boxwright.evaluation.coco import shown
from boxwright.evaluation.run import detect_batch
from boxwright.files import write_whole
from boxwright.images import open_image
from boxwright.types import Detections
from boxwright.visualization import charts, html
from boxwright.visualization.images import draw_annotated

IMAGES, PANEL = 6, 640  # images shown, and their long side in pixels
_COLUMNS = (
    "AP", "AP50", "ECE", "AP small", "AP medium", "AP large", "ms per image", "MiB to detect", "MiB to train",
    "M parameters", "epochs", "minutes",
)  # fmt: skip
_COLOURED = 20  # classes that have a colour of their own
CLASSES = 30  # most frequent classes, in the table of classes


def write_report(
    folder: Path,
    settings: SharedSettings,
    rows: Sequence[Row],
    advice: Sequence[str],
    failed: dict[str, str],
    device: str,
    cache: Cache,
    records: Sequence[Record],
    names: Sequence[str],
) -> None:
    """Write ``index.html`` and ``curves.png`` into the folder of a comparison, whole or not at all.

    Args:
        folder: has the run of each detector in a folder of its name.
        settings: the settings of the comparison.
        rows: results of each detector, best first.
        advice: sentences, the recommendation first.
        failed: the reason, for each detector without a row.
        device: name of the device.
        cache, records: the validation images and their annotations.
        names: the classes.
    """
    curves = {row.model: [(seconds / 60, ap) for seconds, ap in row.curve] for row in rows}
    points = {row.model: (row.latency, row.ap) for row in rows}
    chart = folder / "curves.png"
    write_whole(chart, lambda temporary: charts.comparison(curves, points, temporary))
    html.write_page(
        folder / "index.html",
        "comparison/report.html",
        shlex.join(["boxwright", "compare", str(settings.data), "--out", str(folder)]),
        title=f"Which detector for {short_name(settings.data)}?",
        advice=advice,
        early=is_early(rows),
        columns=_COLUMNS,
        numbers=_numbers,
        names=names,
        most_coloured=_COLOURED,
        failed=failed,
        rows=rows,
        best_ap=max(row.ap for row in rows),
        settings=settings,
        budget=f"{settings.epochs} epoch{'s' * (settings.epochs != 1)}"
        if settings.epochs
        else f"{settings.minutes:g} minutes",
        n_images=len(records),
        device=device,
        chart=html.file_address(chart),
        images=_images(folder, settings, rows, cache, records, names),
        classes=_classes(records, names),
        n_classes=len(names),
        most_classes=CLASSES,
        colour=colour,
        shown=shown,
        floor=FLOOR,
    )


def _images(
    folder: Path,
    settings: SharedSettings,
    rows: Sequence[Row],
    cache: Cache,
    records: Sequence[Record],
    names: Sequence[str],
) -> list[list[tuple[str, str, str]]]:
    """A few images with objects, spread over the split: annotated, and with the boxes of each detector.

    Each as caption, address and what is on it.
    """
    with_objects = [n for n, record in enumerate(records) if (~record.ignore_N).any()]
    chosen = np.linspace(0, len(with_objects) - 1, min(IMAGES, len(with_objects))).round().astype(int)
    positions = [with_objects[n] for n in chosen]
    found = {row.model: _found(folder / row.model / "last", settings.device, cache, positions) for row in rows}
    images = []
    for n, position in enumerate(positions):
        record, image = records[position], open_image(records[position].path)
        count = int((~record.ignore_N).sum())
        name, objects = record.path.name, f"{count} object{'s' * (count != 1)}"
        panels = [(f"{name}: {objects}, as annotated", draw_annotated(record, names, image), f"{name}, as annotated")]
        panels += [
            (model, draw(image, _best(each[n], count)), f"{name}: the best boxes of {model}, as many as it has objects")
            for model, each in found.items()
        ]
        images.append([(caption, html.image_address(_small(panel)), text) for caption, panel, text in panels])
    return images


def _found(weights: Path, device: str, cache: Cache, positions: Sequence[int]) -> list[Detections]:
    """Detections of one detector in some images."""
    detector = load_detector(weights, device)
    return [found for n in positions for found in detect_batch(detector, cache.batch([n]).to(device))]


def _best(found: Detections, count: int) -> Detections:
    return Detections(found.boxes_N4[:count], found.scores_N[:count], found.labels_N[:count], found.names)


def _numbers(row: Row) -> list[str]:
    """The cells of a detector's row behind its AP, in the order of `_COLUMNS`."""
    return [
        *(shown(row.stats.get(name, -1)) for name in ("AP50", "ECE", "APs", "APm", "APl")),
        f"{row.latency:,.1f}",
        f"{row.cost['detection_mib']:,.0f}",
        f"{row.cost['training_mib']:,.0f}",
        f"{row.cost['parameters'] / 1e6:.1f}",
        str(row.epochs),
        f"{row.curve[-1][0] / 60:.1f}",
    ]


def _small(panel: Image.Image) -> Image.Image:
    panel.thumbnail((PANEL, PANEL), Image.Resampling.LANCZOS)
    return panel


def _classes(records: Sequence[Record], names: Sequence[str]) -> list[tuple[str, int]]:
    """Each class that occurs, and its number of objects, the most frequent first."""
    labels_N = np.concatenate([record.labels_N[~record.ignore_N] for record in records])
    objects_K = np.bincount(labels_N, minlength=len(names))
    return [(names[k], int(objects_K[k])) for k in np.argsort(-objects_K, kind="stable").tolist() if objects_K[k]]

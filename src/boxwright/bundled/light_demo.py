"""`boxwright demo` where torch is not installed: the exported detector draws its boxes, and counts which are right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.progress import track
from rich.table import Table

from boxwright.checkpoints.locate import exported_bundled
from boxwright.console import make_console
from boxwright.data.read import read
from boxwright.drawing import draw
from boxwright.evaluation.matches import Matches, match
from boxwright.files import write_whole
from boxwright.images import open_image
from boxwright.runtime.onnx_detector import Detector


def light_demo(data: Path, out: Path) -> Matches:
    """Detect in the test images, draw, and print precision and recall.

    Args:
        data: the bundled images.
        out: folder for overlays/.
    """
    console, detector = make_console(), Detector(exported_bundled("demo"))
    records = read(data).splits["test"]
    console.print(
        f"{detector.facts.model}, int8, on {len(records)} images; {detector.thresholds.describe(detector.names)}"
    )
    results = detector.find([record.path for record in records])
    detections = []
    for record, result in zip(records, track(results, "detecting", len(records), transient=True), strict=True):
        picture = draw(open_image(record.path), result.detections)
        write_whole(out / "overlays" / f"{record.path.stem}.jpg", lambda file, it=picture: it.save(file, format="jpeg"))
        detections.append(result.detections)
    labels = np.concatenate([record.labels_N[~record.ignore_N] for record in records])
    matches = match(records, detections, np.bincount(labels, minlength=len(detector.names)))
    console.print(_table(matches, detector.names))
    more = "average precision, a page of results, and training on your own images"
    console.print(f'\nPictures: {out / "overlays"}\npython -m pip install "boxwright[train]" adds {more}.')
    return matches


def _table(matches: Matches, names: tuple[str, ...]) -> Table:
    """Of each class and all: objects, precision and recall of the detections at an IoU of 0.5."""
    table = Table("class", box=None, header_style="bold", pad_edge=False)
    for column in ("objects", "detected", "precision", "recall"):
        table.add_column(column, justify="right")
    for name, own in [*((name, matches.of_class(k)) for k, name in enumerate(names)), ("all", matches)]:
        right, objects, detected = int(own.right_D.sum()), int(own.objects_K.sum()), len(own.right_D)
        shares = (f"{right / count:.3f}" if count else "-" for count in (detected, objects))
        table.add_row(name, str(objects), str(detected), *shares)
    return table

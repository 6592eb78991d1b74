"""The page with the results of an evaluation: one HTML file with its pictures inside, which loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from boxwright.evaluation.coco import STAT_NAMES, Report, shown
from boxwright.evaluation.thresholds import Choice, point_texts
from boxwright.visualization import html

_MEANINGS = (
    "IoU 0.50 to 0.95", "IoU 0.50", "IoU 0.75", "objects under 32² px", "32² to 96² px", "over 96² px",
    "1 detection per image", "10 detections", "100 detections", "under 32² px", "32² to 96² px", "over 96² px",
)  # fmt: skip


def write_page(
    path: Path,
    title: str,
    report: Report,
    choice: Choice,
    pictures: Sequence[tuple[str, Path]] = (),
    notes: Sequence[str] = (),
    charts: Sequence[tuple[str, Path]] = (),
    f1_curves: Path | None = None,
    command: str = "",
) -> None:
    """Write the page, whole or not at all.

    Args:
        path: the HTML file.
        title: its heading.
        report: the twelve numbers, the classes, the calibration and what each score threshold gives.
        choice: the thresholds.
        pictures: caption and PNG or JPEG file of each picture; shown in a grid, enlarged when clicked.
        notes: paragraphs under the heading: which weights, which data, how to read the page.
        charts: caption and PNG or JPEG file of each chart, such as curves or the confusion matrix.
        f1_curves: the chart of F1 over score.
        command: that repeats the evaluation.

    Raises:
        UserError: if the page can't be written.
    """
    html.write_page(
        path,
        "evaluation/report.html",
        command,
        title=title,
        notes=notes,
        tiles=list(zip(report.stats, STAT_NAMES, _MEANINGS, strict=True)),
        report=report,
        charts=[(caption, html.file_address(file)) for caption, file in charts],
        pictures=[(caption, html.file_address(file)) for caption, file in pictures],
        shown=shown,
        thresholds=report.thresholds,
        rows=report.thresholds.rows(choice),
        in_use=choice.in_use.describe(report.names),
        point_texts=point_texts,
        f1_curves=f1_curves and html.file_address(f1_curves),
    )

"""One page that says how good a detector is: a single HTML file, with its pictures inside and nothing fetched."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from boxwright.evaluation.coco import STAT_NAMES, Report, shown
from boxwright.visualization import html

_MEANINGS = (
    "IoU 0.50 to 0.95", "IoU 0.50", "IoU 0.75", "objects under 32² px", "32² to 96² px", "over 96² px",
    "1 detection an image", "10 detections", "100 detections", "under 32² px", "32² to 96² px", "over 96² px",
)  # fmt: skip


def write_page(
    path: Path,
    title: str,
    report: Report,
    pictures: Sequence[tuple[str, Path]] = (),
    notes: Sequence[str] = (),
    charts: Sequence[tuple[str, Path]] = (),
) -> None:
    """Write the page, whole or not at all.

    Args:
        path: the HTML file.
        title: its heading.
        report: the twelve numbers and the classes.
        pictures: caption and PNG or JPEG file of each picture; they stand in a grid and grow when clicked.
        notes: paragraphs under the heading: which weights, which data, how to read the page.
        charts: caption and PNG or JPEG file of each chart, such as curves or the confusion matrix.

    Raises:
        UserError: if the page can't be written.
    """
    parts = [
        f"<h1>{escape(title)}</h1>",
        *(f"<p>{escape(note)}</p>" for note in notes),
        _tiles(report),
        "<h2>Classes</h2>",
        _class_table(report),
        _gallery("Charts", "charts", charts),
        _gallery("Pictures", "pictures", pictures),
        f"<h2>As pycocotools prints it</h2><pre>{escape(report.summary())}</pre>",
    ]
    html.write(path, title, parts, _STYLE)


def _tiles(report: Report) -> str:
    tiles = [
        f"<div><b>{shown(value)}</b><span>{name}</span><small>{meaning}</small></div>"
        for name, value, meaning in zip(STAT_NAMES, report.stats, _MEANINGS, strict=True)
    ]
    return f'<section class="tiles">{"".join(tiles)}</section>'


def _class_table(report: Report) -> str:
    rows = [
        f"<tr><td>{escape(name)}</td>{_bar(row['ap'])}{_bar(row['ap50'])}"
        f"<td>{row['images']:,}</td><td>{row['boxes']:,}</td></tr>"
        for name, row in report.per_class.items()
    ]
    head = "<tr><th>class</th><th>AP</th><th>AP50</th><th>images</th><th>boxes</th></tr>"
    last = (
        f"<tr><td>all</td>{_bar(report.ap)}{_bar(report.ap50)}"
        f"<td>{report.images:,}</td><td>{int(report.boxes_K.sum()):,}</td></tr>"
    )
    return f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody><tfoot>{last}</tfoot></table>"


def _bar(value: float) -> str:
    """A cell with the number and a bar as long as it is high."""
    return f'<td class="bar" style="--share:{max(value, 0):.3f}">{shown(value)}</td>'


def _gallery(title: str, kind: str, pictures: Sequence[tuple[str, Path]]) -> str:
    figures = "".join(
        f"<figure>{html.zoomable(_inside(file), caption)}<figcaption>{escape(caption)}</figcaption></figure>"
        for caption, file in pictures
    )
    return f'<h2>{title}</h2><section class="{kind}">{figures}</section>' if figures else ""


def _inside(file: Path) -> str:
    return html.inside(file.read_bytes(), "png" if file.suffix.lower() == ".png" else "jpeg")


_STYLE = """
table { border-collapse: collapse; width: 100%; max-width: 760px; background: var(--card);
  border: 1px solid var(--line); font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
th { color: var(--dim); font-weight: 600; } tfoot td { font-weight: 700; border-bottom: 0; }
.bar { background: linear-gradient(to right, var(--bar) calc(var(--share) * 100%), transparent 0)
  no-repeat 0 50% / 100% 76%; }
.charts, .pictures { display: grid; gap: .9rem; align-items: start; }
.charts { grid-template-columns: repeat(auto-fit, minmax(min(460px, 100%), 1fr)); }
.pictures { grid-template-columns: repeat(auto-fill, minmax(min(480px, 100%), 1fr)); }
@media (min-width: 1000px) { .charts { grid-template-columns: 3fr 2fr; } }
pre { padding: .9rem; overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  font-size: .85rem; }
"""

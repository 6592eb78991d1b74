"""The page of a comparison: which to take and why, the numbers, the curves, the same images side by side."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from boxwright.checkpoints.detector_file import load_detector
from boxwright.comparison.advice import Row
from boxwright.comparison.settings import Terms, short_name
from boxwright.data.cache import Cache
from boxwright.data.records import Record
from boxwright.evaluation.coco import shown
from boxwright.evaluation.run import detect_batch
from boxwright.explanation.html_parts import STYLE, picture
from boxwright.files import write_whole
from boxwright.images import open_image
from boxwright.types import Detections
from boxwright.visualization import charts, html
from boxwright.visualization.images import colour, draw, draw_truth

PICTURES, PANEL = 6, 640  # images drawn, and the long side of each picture in pixels
CLASSES = 30  # rows of the table of classes: the most frequent


def write_report(
    folder: Path,
    terms: Terms,
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
        folder: where the run of each detector is in a folder of its name.
        terms: of all detectors.
        rows: best first.
        advice: sentences, the first of them the news.
        failed: why, of each detector that has no row.
        device: the machine, in words.
        cache, records: the validation images.
        names: the classes.
    """
    curves = {row.model: [(seconds / 60, ap) for seconds, ap in row.curve] for row in rows}
    points = {row.model: (row.latency, row.ap) for row in rows}
    chart = folder / "curves.png"
    write_whole(chart, lambda temporary: charts.compared(curves, points, temporary))
    title = f"Which detector for {short_name(terms.data)}?"
    said = "".join(f"<p>{escape(sentence)}</p>" for sentence in advice[1:])
    missing = "".join(f"<p>{escape(f'{model} failed: {why}')}</p>" for model, why in failed.items())
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<section class="advice"><b>{escape(advice[0])}</b>{said}{missing}</section>',
        _table(rows),
        f"<p>{escape(_terms(terms, len(records), device))}</p>",
        f'<figure class="chart">{html.zoomable(html.inside(chart.read_bytes(), "png"), "AP over time")}</figure>',
        "<h2>The same images</h2>",
        "<p>Of each detector as many of its surest boxes as the image has objects, whatever their scores.</p>",
        *_pictures(folder, terms, rows, cache, records, names),
        _classes(rows, records, names),
        "<h2>How it was measured</h2>",
        *(f"<p>{escape(sentence)}</p>" for sentence in _METHOD),
    ]
    html.write(folder / "index.html", title, parts, STYLE + _STYLE)


def _terms(terms: Terms, images: int, device: str) -> str:
    budget = f"{terms.epochs} epochs" if terms.epochs else f"{terms.minutes:g} minutes"
    return (
        f"The same for all: training images of {terms.data}, {images} images to validate on, {terms.image_size} px, "
        f"size {terms.size}, augmentation, {budget} each. Device: {device}."
    )


def _table(rows: Sequence[Row]) -> str:
    heads = ("detector", "AP", "AP50", "small", "medium", "large", "ms an image", "MiB to detect", "MiB to train",
             "M parameters", "epochs", "minutes")  # fmt: skip
    best = max(row.ap for row in rows)
    body = "".join(_line(n, row, best) for n, row in enumerate(rows))
    head = "".join(f"<th>{name}</th>" for name in heads)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _line(n: int, row: Row, best: float) -> str:
    """A row of the table; its colour is that of the detector's curve."""
    share = max(row.ap, 0) / best if best > 0 else 0
    scores = "".join(f"<td>{shown(row.stats[name])}</td>" for name in ("AP50", "APs", "APm", "APl"))
    cost = [f"{row.latency:,.1f}", f"{row.cost['detection_mib']:,.0f}", f"{row.cost['training_mib']:,.0f}"]
    cost += [f"{row.cost['parameters'] / 1e6:.1f}", str(row.epochs), f"{row.curve[-1][0] / 60:.1f}"]
    return (
        f'<tr><td><i style="background:{colour(n)}"></i>{row.model}</td>'
        f'<td class="bar" style="--share:{share:.3f}">{shown(row.ap)}</td>{scores}'
        + "".join(f"<td>{value}</td>" for value in cost)
        + "</tr>"
    )


def _pictures(
    folder: Path, terms: Terms, rows: Sequence[Row], cache: Cache, records: Sequence[Record], names: Sequence[str]
) -> list[str]:
    """A row for each of a few images with objects, spread over the split: what is true, and what each detector says."""
    there = [n for n, record in enumerate(records) if (~record.ignore_N).any()]
    places = np.linspace(0, len(there) - 1, min(PICTURES, len(there))).round().astype(int)
    positions = [there[place] for place in places]
    found = {row.model: _found(folder / row.model / "last", terms.device, cache, positions) for row in rows}
    lines = []
    for n, position in enumerate(positions):
        record, image = records[position], open_image(records[position].path)
        count = int((~record.ignore_N).sum())
        panels = [(draw_truth(record, names, image), f"{record.path.name}: {count} objects, as annotated")]
        panels += [(draw(image, _surest(each[n], count)), model) for model, each in found.items()]
        figures = "".join(
            f"<figure>{picture(_small(panel), caption)}<figcaption>{escape(caption)}</figcaption></figure>"
            for panel, caption in panels
        )
        lines.append(f'<section class="same">{figures}</section>')
    return lines


def _found(weights: Path, device: str, cache: Cache, positions: Sequence[int]) -> list[Detections]:
    """What a detector says of some images."""
    detector = load_detector(weights, device)
    return [found for n in positions for found in detect_batch(detector, cache.batch([n]).to(device))]


def _surest(found: Detections, count: int) -> Detections:
    return Detections(found.boxes_N4[:count], found.scores_N[:count], found.labels_N[:count], found.names)


def _small(panel: Image.Image) -> Image.Image:
    panel.thumbnail((PANEL, PANEL), Image.Resampling.LANCZOS)
    return panel


def _classes(rows: Sequence[Row], records: Sequence[Record], names: Sequence[str]) -> str:
    """AP of each class, the most frequent first."""
    labels_N = np.concatenate([record.labels_N[~record.ignore_N] for record in records])
    boxes_K = np.bincount(labels_N, minlength=len(names))
    there = [k for k in np.argsort(-boxes_K, kind="stable")[:CLASSES].tolist() if boxes_K[k]]
    head = "".join(f"<th>{name}</th>" for name in ("class", "objects", *(row.model for row in rows)))
    body = "".join(
        f"<tr><td>{escape(names[k])}</td><td>{boxes_K[k]:,}</td>"
        + "".join(f'<td class="bar" style="--share:{max(row.per_class[names[k]], 0):.3f}">'
                  f"{shown(row.per_class[names[k]])}</td>" for row in rows)
        + "</tr>"
        for k in there
    )  # fmt: skip
    more = f"<p>The {CLASSES} most frequent of {len(names)} classes.</p>" if len(there) < (boxes_K > 0).sum() else ""
    table = f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    return f"<h2>AP by class</h2>{table}{more}"


_METHOD = (
    "Each detector began with ImageNet weights in its backbone, where its recipe has such, and was trained by its own "
    "optimizer settings and batch size. A budget in minutes was turned into whole epochs by a rehearsal of some steps "
    "and one validation, so that each learning rate came to its end; the table says what they took.",
    "AP is COCO's, of the last weights: nothing was chosen on the images that are scored. Small, medium and large are "
    "objects under 32 x 32 pixels of the image on disk, up to 96 x 96, and over it; - where there are none.",
    "Noise is half the width of the 95 % confidence interval of a difference between two detectors, from their "
    "differences on ten parts of the validation images. It says what other images might, not what another seed might.",
    "Milliseconds an image: the median of one image at a time on this device, from canvas to boxes, without reading "
    "the file, which is the same for all. MiB: the peak of memory, of a process that does only that; on a GPU what "
    "torch holds there, elsewhere the whole process, Python included.",
)
_STYLE = """
.advice { margin: .6rem 0 1.4rem; padding: 1rem 1.2rem; background: var(--card); border: 1px solid var(--line);
  border-left: 5px solid #16a85a; border-radius: 10px; }
.advice b { font-size: 1.15rem; }
.wide { overflow-x: auto; margin-bottom: .6rem; }
table { border-collapse: collapse; width: 100%; background: var(--card); border: 1px solid var(--line);
  font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .8rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { color: var(--dim); font-weight: 600; }
td i { display: inline-block; width: .8em; height: .8em; margin-right: .5em; border-radius: 50%; }
.bar { background: linear-gradient(to right, var(--bar) calc(var(--share) * 100%), transparent 0)
  no-repeat 0 50% / 100% 76%; }
.chart { margin-top: 1.4rem; } .chart img { max-width: 1200px; margin: 0 auto; }
.same { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(220px, 100%), 1fr)); gap: .7rem;
  margin-top: .8rem; align-items: start; }
"""

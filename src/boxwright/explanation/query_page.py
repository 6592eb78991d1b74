"""How a detector of queries came to its objects, on one page: where the decoder and the encoder looked."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from boxwright.explanation import html_parts
from boxwright.explanation.attention_maps import Cells, Look, Pass, Points
from boxwright.visualization import heatmaps, html, images

LEAST, MOST = 2, 6  # queries shown where none is asked for: those that are sure
PEAK = 4  # a cell with so many times an even share is bright, even if none has more
LOOKERS = 5  # queries shown that look most at a pixel
_SMALL = 400  # long side of the pictures, in pixels
_ABREAST = 8  # pictures side by side at most
Point = tuple[float, float]


def write_page(
    file: Path,
    title: str,
    photo: Image.Image,
    seen: Pass,
    note: str,
    queries: Sequence[int],
    pixel: Point | None = None,
) -> None:
    """Write the page of one image, whole or not at all.

    Args:
        file: the HTML file.
        title: its heading.
        photo: the image in its original size.
        seen: what the detector made of it.
        note: a line under the heading.
        queries: those to show in detail.
        pixel: x and y in fractions of the image, to show where it looks and who looks at it.
    """
    small = html_parts.reduced(photo, _SMALL)
    parts = [
        f"<h1>{escape(title)}</h1><p>{escape(note)}</p>",
        _overview(photo, seen, queries, pixel),
        _pixel_card(small, photo.size, seen, pixel) if pixel else "",
        *(_query_card(small, seen, query) for query in queries),
    ]
    html.write(file, title, parts, html_parts.STYLE + _STYLE)


def choose(seen: Pass) -> list[int]:
    """The queries worth a card: those that are sure of an object, best first, if there are not too few or too many."""
    best = seen.best(MOST)
    sure = sum(seen.said(query)[1] > html_parts.SURE for query in best)
    return best[: max(sure, LEAST)]


def _overview(photo: Image.Image, seen: Pass, queries: Sequence[int], pixel: Point | None) -> str:
    """The image with the queries shown, and the detector in numbers."""
    labels = [seen.said(query)[0] for query in queries]
    texts = [f"{query + 1} {seen.names[label]}" for query, label in zip(queries, labels, strict=True)]
    boxes_N4 = np.array([seen.box(query) for query in queries]).reshape(-1, 4) * np.array(photo.size * 2)
    drawn = images.draw_named(photo, boxes_N4, texts, labels)
    if pixel:
        heatmaps.pin(drawn, pixel)
    sure = sum(seen.said(query)[1] > html_parts.SURE for query in range(seen.queries))
    maps = " + ".join(f"{columns} x {rows}" for rows, columns in seen.shapes)
    tiles = [
        (str(seen.queries), "queries", "each says one box"),
        (str(sure), "of them sure", f"score over {html_parts.SURE:.2f}"),
        (f"{len(seen.encoder)} + {seen.layers}", "layers", "of the encoder and of the decoder"),
        (str(sum(rows * columns for rows, columns in seen.shapes)), "cells", maps),
    ]
    caption = "Numbers and boxes are those of the queries below." if queries else "The pixel below is marked."
    return html_parts.overview(drawn, caption, tiles, _about(seen))


def _about(seen: Pass) -> str:
    if _of_cells(seen):
        return _CELLS + _BOTH
    dots = "".join(
        f'<i style="background:{heatmaps.DOTS[v % len(heatmaps.DOTS)]}"></i>{columns} x {rows}&ensp;'
        for v, (rows, columns) in enumerate(seen.shapes)
    )
    return f'{_POINTS}<p class="dots">{dots}</p>{_BOTH}'


def _query_card(photo: Image.Image, seen: Pass, query: int) -> str:
    """A query: where it looked layer by layer, head by head in the last, and the encoder from the middle of its box."""
    looks, (label, score), point = seen.query_looks(query), seen.said(query), seen.middle(query)
    name, last = f"query {query + 1}", looks[-1]
    layers = []
    for layer, look in enumerate(looks):
        said, sure = seen.said(query, layer)
        drawn = look_picture(photo, look, seen.box(query, layer))
        layers.append((f"layer {layer + 1} <small>· {escape(seen.names[said])} {sure:.2f}</small>", drawn))
    encoder = encoder_pictures(photo, seen, point)
    shown = max(1, _ABREAST // len(seen.shapes)) * len(seen.shapes)  # the last layers, as many as fit a row
    rows = [
        _row("The decoder looks, and says after each layer", name, layers),
        _row("Head by head, in its last layer", name, _heads(photo, last, seen.box(query))),
        _row("The encoder looks, from the middle of the box", name, encoder[-shown:]),
    ]
    rows.insert(1, f"<p>{_taken(seen, last)}</p>" if isinstance(last, Points) else "")
    title = f"<h3><span>{query + 1}</span> {escape(seen.names[label])} <b>{score:.2f}</b></h3>"
    return f'<section class="card" id="query-{query + 1}" {html_parts.shade(label)}>{title}{"".join(rows)}</section>'


def _taken(seen: Pass, look: Points) -> str:
    """How much is taken of each map, and how much of what is looked at lies beyond the image, where nothing is."""
    shares_V = look.weights_HVP.sum((0, 2)) / look.weights_HVP.sum()
    maps = ", ".join(
        f"{share:.0%} of {columns} x {rows}" for (rows, columns), share in zip(seen.shapes, shares_V, strict=True)
    )
    beyond_HVP = ((look.places_HVP2 < 0) | (look.places_HVP2 > 1)).any(-1)
    beyond = look.weights_HVP[beyond_HVP].sum() / look.weights_HVP.sum()
    return f"Its last layer takes {maps}; {beyond:.0%} from beyond the image."


def _pixel_card(photo: Image.Image, size: tuple[int, int], seen: Pass, point: Point) -> str:
    """A pixel: where it looked in each layer of the encoder, and which queries of the decoder looked at it most."""
    x, y = (int(at * length) for at, length in zip(point, size, strict=True))
    shares_Q = seen.lookers(point)
    lookers = []
    for query in np.argsort(-shares_Q, kind="stable")[:LOOKERS].tolist():
        label, score = seen.said(query)
        drawn = look_picture(photo, seen.query_looks(query)[-1], seen.box(query), point)
        said = f"query {query + 1} <small>· {escape(seen.names[label])} {score:.2f} · {shares_Q[query]:.1%}</small>"
        lookers.append((said, drawn))
    looks = seen.pixel_looks(point)[-1]
    rows = [_row("The encoder looks", "pixel", encoder_pictures(photo, seen, point))]
    if _of_cells(seen):
        rows.append(_row("Head by head, in its last layer", "pixel", _heads(photo, looks[0], None, point)))
    rows.append(_row("The queries that look at it most, in the decoder's last layer", "pixel", lookers))
    return f'<section class="card pixel"><h3>pixel {x}, {y}</h3>{"".join(rows)}</section>'


def encoder_pictures(photo: Image.Image, seen: Pass, point: Point) -> list[tuple[str, Image.Image]]:
    """Where a point looks in each layer of the encoder, a picture (and its title) for each map that it is a cell of."""
    pictures = []
    for layer, looks in enumerate(seen.pixel_looks(point)):
        for (rows, columns), look in zip(seen.shapes, looks, strict=True):
            cell = f" <small>· from its cell of {columns} x {rows}</small>" if len(looks) > 1 else ""
            pictures.append((f"layer {layer + 1}{cell}", look_picture(photo, look, None, point)))
    return pictures


def look_picture(
    photo: Image.Image, look: Look, box: tuple[float, float, float, float] | None = None, point: Point | None = None
) -> Image.Image:
    """Where something looked, all heads together, with a box and a cross."""
    if isinstance(look, Cells):
        shares_RC = look.shares_HRC.mean(0)
        drawn = heatmaps.attention_heat(photo, shares_RC, (1.0, 1.0), box, full=PEAK / shares_RC.size)
    else:
        places_VN2 = look.places_HVP2.swapaxes(0, 1).reshape(look.places_HVP2.shape[1], -1, 2)
        drawn = heatmaps.point_heat(
            photo, places_VN2, look.weights_HVP.swapaxes(0, 1).reshape(len(places_VN2), -1), box
        )
    if point is not None:
        heatmaps.pin(drawn, point)
    return drawn


def _heads(
    photo: Image.Image,
    look: Look,
    box: tuple[float, float, float, float] | None = None,
    point: Point | None = None,
) -> list[tuple[str, Image.Image]]:
    heads = look.shares_HRC if isinstance(look, Cells) else look.weights_HVP
    return [(f"head {h + 1}", look_picture(photo, look.head(h), box, point)) for h in range(len(heads))]


def _row(title: str, name: str, pictures: Sequence[tuple[str, Image.Image]]) -> str:
    """Pictures side by side, under a line that says what they have in common."""
    slots = "".join(
        f'<div class="slot"><h4>{said}</h4>{html_parts.picture(drawn, f"{name}: {title}")}</div>'
        for said, drawn in pictures
    )
    abreast = min(max(len(pictures), 5), _ABREAST)
    return f'<p>{title}</p><div class="looks" style="--abreast:{abreast}">{slots}</div>'


def _of_cells(seen: Pass) -> bool:
    return isinstance(seen.query_looks(0)[0], Cells)


_CELLS = f"""<p><b>Attention</b> is the share of what is gathered that comes of each cell, enlarged smoothly: the mean
over the heads, or of one head. The greatest of each picture is brightest, if it is at least {PEAK} times an even share:
where a picture is evenly tinted, nothing was looked at more than anything else.</p>"""
_POINTS = """<p><b>Dots</b> are the points that are looked at, of all heads, or of one. Their area goes with what is
taken of each, their colour says of which map, by its cells:</p>"""
_BOTH = f"""<p><b>The decoder</b>: a query gathers from the image layer by layer; over each picture stands what it says
after that layer, the likeliest class with its score, and the box is drawn. <b>The encoder</b>: before, each cell
gathered from the others; a cross marks the pixel from which one looks.</p>
<p>--query N shows another query, --pixel [x, y] where a pixel looks, and the {LOOKERS} queries that look at it most.
Click to enlarge.</p>"""
_STYLE = """
.card > p { margin-top: .7rem; font-size: .9rem; } .pixel { --shade: #35e0ff; }
.looks { display: grid; gap: .6rem; grid-template-columns: repeat(var(--abreast), minmax(0, 1fr)); }
@media (max-width: 1120px) { .looks { grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); } }
.card .dots { margin-top: 0; } .dots i { display: inline-block; width: .8em; height: .8em; border-radius: 50%;
  border: 1px solid #000; margin-right: .3em; }
"""

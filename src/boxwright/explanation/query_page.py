"""How a detector of queries came to its objects, on one page: where the decoder and the encoder looked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from boxwright.explanation.attention_maps import Cells, Look, Pass, Points
from boxwright.explanation.html_parts import SURE, Picture, overview, resized
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
    small = resized(photo, _SMALL)
    drawn, tiles = _overview(photo, seen, queries, pixel)
    html.write_page(
        file,
        "explanation/query_page.html",
        title=title,
        note=note,
        image=drawn,
        tiles=tiles,
        dots=[] if _of_cells(seen) else _dots(seen),
        peak=PEAK,
        lookers=LOOKERS,
        most_abreast=_ABREAST,
        pixel=_pixel_card(small, photo.size, seen, pixel) if pixel else None,
        queries=[_query_card(small, seen, query) for query in queries],
    )


def choose(seen: Pass) -> list[int]:
    """The queries worth a card: those that are sure of an object, best first, if there are not too few or too many."""
    best = seen.best(MOST)
    sure = sum(seen.said(query)[1] > SURE for query in best)
    return best[: max(sure, LEAST)]


def _overview(
    photo: Image.Image, seen: Pass, queries: Sequence[int], pixel: Point | None
) -> tuple[Picture, list[tuple[str, str, str]]]:
    """The image with the queries shown, and the detector in numbers: each with its name and meaning."""
    labels = [seen.said(query)[0] for query in queries]
    texts = [f"{query + 1} {seen.names[label]}" for query, label in zip(queries, labels, strict=True)]
    boxes_N4 = np.array([seen.box(query) for query in queries]).reshape(-1, 4) * np.array(photo.size * 2)
    drawn = images.draw_named(photo, boxes_N4, texts, labels)
    if pixel:
        heatmaps.pin(drawn, pixel)
    sure = sum(seen.said(query)[1] > SURE for query in range(seen.queries))
    maps = " + ".join(f"{columns} x {rows}" for rows, columns in seen.shapes)
    tiles = [
        (str(seen.queries), "queries", "each says one box"),
        (str(sure), "of them sure", f"score over {SURE:.2f}"),
        (f"{len(seen.encoder)} + {seen.layers}", "layers", "of the encoder and of the decoder"),
        (str(sum(rows * columns for rows, columns in seen.shapes)), "cells", maps),
    ]
    caption = "Numbers and boxes are those of the queries below." if queries else "The pixel below is marked."
    return overview(drawn, caption), tiles


def _dots(seen: Pass) -> list[tuple[str, str]]:
    """The colour of each map's points, and the map's size."""
    return [
        (heatmaps.DOTS[v % len(heatmaps.DOTS)], f"{columns} x {rows}") for v, (rows, columns) in enumerate(seen.shapes)
    ]


def _query_card(photo: Image.Image, seen: Pass, query: int) -> dict[str, Any]:
    """A query: where it looked layer by layer, head by head in the last, and the encoder from the middle of its box."""
    looks, (label, score) = seen.query_looks(query), seen.said(query)
    layers = []
    for layer, look in enumerate(looks):
        predicted, sure = seen.said(query, layer)
        drawn = look_picture(photo, look, seen.box(query, layer))
        layers.append(_picture(drawn, f"layer {layer + 1}", f"{seen.names[predicted]} {sure:.2f}"))
    shown = max(1, _ABREAST // len(seen.shapes)) * len(seen.shapes)  # the last layers, as many as fit a row
    return {
        "number": query + 1,
        "colour": images.colour(label),
        "name": seen.names[label],
        "score": score,
        "layers": layers,
        "taken": _taken(seen, looks[-1]) if isinstance(looks[-1], Points) else "",
        "heads": _heads(photo, looks[-1], seen.box(query)),
        "encoder": encoder_pictures(photo, seen, seen.middle(query))[-shown:],
    }


def _taken(seen: Pass, look: Points) -> str:
    """How much is taken of each map, and how much of what is looked at lies beyond the image, where nothing is."""
    shares_V = look.weights_HVP.sum((0, 2)) / look.weights_HVP.sum()
    maps = ", ".join(
        f"{share:.0%} of {columns} x {rows}" for (rows, columns), share in zip(seen.shapes, shares_V, strict=True)
    )
    beyond_HVP = ((look.places_HVP2 < 0) | (look.places_HVP2 > 1)).any(-1)
    beyond = look.weights_HVP[beyond_HVP].sum() / look.weights_HVP.sum()
    return f"Its last layer takes {maps}; {beyond:.0%} from beyond the image."


def _pixel_card(photo: Image.Image, size: tuple[int, int], seen: Pass, point: Point) -> dict[str, Any]:
    """A pixel: where it looked in each layer of the encoder, and which queries of the decoder looked at it most."""
    x, y = (int(at * length) for at, length in zip(point, size, strict=True))
    shares_Q = seen.lookers(point)
    lookers = []
    for query in np.argsort(-shares_Q, kind="stable")[:LOOKERS].tolist():
        label, score = seen.said(query)
        drawn = look_picture(photo, seen.query_looks(query)[-1], seen.box(query), point)
        detail = f"{seen.names[label]} {score:.2f} · {shares_Q[query]:.1%}"
        lookers.append(_picture(drawn, f"query {query + 1}", detail))
    last = seen.pixel_looks(point)[-1][0]
    return {
        "x": x,
        "y": y,
        "encoder": encoder_pictures(photo, seen, point),
        "heads": _heads(photo, last, None, point) if isinstance(last, Cells) else [],
        "queries": lookers,
    }


def encoder_pictures(photo: Image.Image, seen: Pass, point: Point) -> list[Picture]:
    """Where a point looks in each layer of the encoder, a picture (and its title) for each map that it is a cell of."""
    pictures = []
    for layer, looks in enumerate(seen.pixel_looks(point)):
        for (rows, columns), look in zip(seen.shapes, looks, strict=True):
            cell = f"from its cell of {columns} x {rows}" if len(looks) > 1 else ""
            pictures.append(_picture(look_picture(photo, look, None, point), f"layer {layer + 1}", cell))
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
) -> list[Picture]:
    heads = look.shares_HRC if isinstance(look, Cells) else look.weights_HVP
    return [_picture(look_picture(photo, look.head(h), box, point), f"head {h + 1}") for h in range(len(heads))]


def _picture(drawn: Image.Image, title: str, detail: str = "") -> Picture:
    return Picture(html.image_address(drawn), title=title, detail=detail)


def _of_cells(seen: Pass) -> bool:
    return isinstance(seen.query_looks(0)[0], Cells)

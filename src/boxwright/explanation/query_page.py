"""The page that explains a detector of queries: the attention of its decoder and encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from boxwright.drawing import colour, draw_named
from boxwright.explanation.attention_maps import AttentionMap, CellMap, PointMap, RecordedPass
from boxwright.explanation.html_parts import LIKELY, Picture, overview, resized
from boxwright.visualization import heatmaps, html

LEAST, MOST = 2, 6  # queries shown by default: those with a high score
PEAK = 4  # a cell with this many times a uniform weight has the brightest colour, even if none has more
ATTENDING = 5  # queries shown that attend to a pixel most
_SMALL = 400  # long side of the images, in pixels
_WHOLE_FROM = 0.8  # share of the image's side from which a close-up is not worth it
_ABREAST = 8  # images side by side at most
Point = tuple[float, float]  # x and y in fractions of the image
Box = tuple[float, float, float, float]  # xyxy in fractions of the image
_WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


def write_page(
    file: Path,
    title: str,
    photo: Image.Image,
    recorded: RecordedPass,
    note: str,
    queries: Sequence[int],
    pixel: Point | None = None,
    command: str = "",
) -> None:
    """Write the page of one image, whole or not at all.

    Args:
        file: the HTML file.
        title: its heading.
        photo: the image in its original size.
        recorded: a forward pass on it.
        note: a line under the heading.
        queries: positions of those to show in detail.
        pixel: a point, to show what it attends to and which queries attend to it.
        command: that writes the page again.
    """
    small = resized(photo, _SMALL)
    drawn, tiles = _overview(photo, recorded, queries, pixel)
    html.write_page(
        file,
        "explanation/query_page.html",
        command,
        title=title,
        note=note,
        image=drawn,
        tiles=tiles,
        dots=_dots(recorded) if isinstance(recorded.query_maps(0)[0], PointMap) else [],
        peak=PEAK,
        attending=ATTENDING,
        most_abreast=_ABREAST,
        pixel=_pixel_card(small, photo.size, recorded, pixel) if pixel else None,
        queries=[_query_card(photo, recorded, query) for query in queries],
    )


def choose(recorded: RecordedPass) -> list[int]:
    """The queries to show by default: those with a score over `LIKELY`, best first, `LEAST` to `MOST` of them."""
    best = recorded.best(MOST)
    likely = sum(recorded.prediction(query)[1] > LIKELY for query in best)
    return best[: max(likely, LEAST)]


def _overview(
    photo: Image.Image, recorded: RecordedPass, queries: Sequence[int], pixel: Point | None
) -> tuple[Picture, list[tuple[str, str, str]]]:
    """The image with the queries shown, and the detector in numbers: each with its name and meaning."""
    labels = [recorded.prediction(query)[0] for query in queries]
    texts = [f"{query + 1} {recorded.names[label]}" for query, label in zip(queries, labels, strict=True)]
    boxes_N4 = np.array([recorded.box(query) for query in queries]).reshape(-1, 4) * np.array(photo.size * 2)
    drawn = draw_named(photo, boxes_N4, texts, labels)
    if pixel:
        heatmaps.draw_cross(drawn, pixel)
    likely = sum(recorded.prediction(query)[1] > LIKELY for query in range(recorded.n_queries))
    maps = " + ".join(f"{columns} x {rows}" for rows, columns in recorded.map_shapes)
    tiles = [
        (str(recorded.n_queries), "queries", "each predicts one box"),
        (str(likely), "of them likely", f"score over {LIKELY:.2f}"),
        (f"{len(recorded.encoder)} + {recorded.n_layers}", "layers", "of the encoder and of the decoder"),
        (str(sum(rows * columns for rows, columns in recorded.map_shapes)), "cells", maps),
    ]
    caption = (
        "The boxes of the queries below, with their numbers." if queries else "The pixel below is marked by a cross."
    )
    return overview(drawn, caption), tiles


def _dots(recorded: RecordedPass) -> list[tuple[str, str]]:
    """The colour of each map's points, and the map's size."""
    return [
        (heatmaps.MAP_COLOURS[v % len(heatmaps.MAP_COLOURS)], f"{columns} x {rows}")
        for v, (rows, columns) in enumerate(recorded.map_shapes)
    ]


def _query_card(photo: Image.Image, recorded: RecordedPass, query: int) -> dict[str, Any]:
    """A query: its attention in each layer and in each head of the last, and the encoder's at the centre of its box."""
    maps, (label, score) = recorded.query_maps(query), recorded.prediction(query)
    small, region = resized(photo, _SMALL), _region(maps[-1], recorded.box(query))
    layers = []
    for layer, attention_map in enumerate(maps):
        label_then, score_then = recorded.prediction(query, layer)
        drawn = _close_up(photo, attention_map, recorded.box(query, layer), region)
        layers.append(_picture(drawn, f"layer {layer + 1}", f"{recorded.names[label_then]} {score_then:.2f}"))
    n_maps = len(recorded.map_shapes)
    n_shown = max(1, _ABREAST // n_maps) * n_maps  # the last layers, as many as fit a row
    return {
        "number": query + 1,
        "colour": colour(label),
        "name": recorded.names[label],
        "score": score,
        "layers": layers,
        "shares": _shares(recorded, maps[-1]) if isinstance(maps[-1], PointMap) else "",
        "cropped": region != _WHOLE,
        "heads": _heads(photo, maps[-1], recorded.box(query), region=region),
        "encoder": _encoder_pictures(small, recorded, recorded.box_centre(query))[-n_shown:],
    }


def _region(attention_map: AttentionMap, box: Box) -> Box:
    """The part of the image to show of a query's attention: for points, around the box and most of its points."""
    if isinstance(attention_map, CellMap):
        return _WHOLE
    points_N2, weights_N = attention_map.points_HVP2.reshape(-1, 2), attention_map.weights_HVP.reshape(-1)
    heavy_N2 = points_N2[weights_N >= 0.2 * weights_N.max()]
    (left, top), (right, bottom) = np.quantile(heavy_N2, (0.05, 0.95), axis=0)
    x1, y1, x2, y2 = min(left, box[0]), min(top, box[1]), max(right, box[2]), max(bottom, box[3])
    middle_2, side = ((x1 + x2) / 2, (y1 + y2) / 2), min(max(1.2 * max(x2 - x1, y2 - y1), 0.25), 1.0)
    x, y = (float(min(max(at - side / 2, 0), 1 - side)) for at in middle_2)
    return (x, y, x + side, y + side) if side < _WHOLE_FROM else _WHOLE


def _close_up(photo: Image.Image, attention_map: AttentionMap, box: Box | None, region: Box) -> Image.Image:
    """Attention in a part of the image, drawn as if this was the whole one."""
    drawn = attention_picture(resized(photo, round(_SMALL / (region[2] - region[0]))), attention_map, box)
    x1, y1, x2, y2 = (round(at * side) for at, side in zip(region, drawn.size * 2, strict=True))
    return drawn.crop((x1, y1, x2, y2))


def _shares(recorded: RecordedPass, attention_map: PointMap) -> str:
    """The share of each feature map in the attention, and the share beyond the image, where features are zero."""
    weights_HVP, points_HVP2 = attention_map.weights_HVP, attention_map.points_HVP2
    shares_V = weights_HVP.sum((0, 2)) / weights_HVP.sum()
    maps = ", ".join(
        f"{share:.0%} on {columns} x {rows}"
        for (rows, columns), share in zip(recorded.map_shapes, shares_V, strict=True)
    )
    beyond_HVP = ((points_HVP2 < 0) | (points_HVP2 > 1)).any(-1)
    beyond = weights_HVP[beyond_HVP].sum() / weights_HVP.sum()
    return f"Shares of the attention of the last layer: {maps} cells. Of all of it, {beyond:.0%} goes beyond the image."


def _pixel_card(photo: Image.Image, size: tuple[int, int], recorded: RecordedPass, point: Point) -> dict[str, Any]:
    """A pixel: its attention in each layer of the encoder, and the queries of the decoder that attend to it most."""
    x, y = (int(at * length) for at, length in zip(point, size, strict=True))
    weights_Q = recorded.attention_to(point)
    queries = []
    for query in np.argsort(-weights_Q, kind="stable")[:ATTENDING].tolist():
        label, score = recorded.prediction(query)
        drawn = attention_picture(photo, recorded.query_maps(query)[-1], recorded.box(query), point)
        detail = f"{recorded.names[label]} {score:.2f} · {weights_Q[query]:.1%}"
        queries.append(_picture(drawn, f"query {query + 1}", detail))
    last = recorded.pixel_maps(point)[-1][0]
    return {
        "x": x,
        "y": y,
        "encoder": _encoder_pictures(photo, recorded, point),
        "heads": _heads(photo, last, None, point) if isinstance(last, CellMap) else [],
        "queries": queries,
    }


def _encoder_pictures(photo: Image.Image, recorded: RecordedPass, point: Point) -> list[Picture]:
    """Attention of a point in each layer of the encoder, a picture for each feature map that has a cell there."""
    pictures = []
    for layer, maps in enumerate(recorded.pixel_maps(point)):
        for (rows, columns), attention_map in zip(recorded.map_shapes[-len(maps) :], maps, strict=True):
            cell = f"cell of the {columns} x {rows} map" if len(maps) > 1 else ""
            drawn = attention_picture(photo, attention_map, None, point)
            pictures.append(_picture(drawn, f"layer {layer + 1}", cell))
    return pictures


def attention_picture(
    photo: Image.Image, attention_map: AttentionMap, box: Box | None = None, point: Point | None = None
) -> Image.Image:
    """Attention over the photograph, all heads together, with a box and a cross at a point."""
    if isinstance(attention_map, CellMap):
        weights_RC = attention_map.weights_HRC.mean(0)
        drawn = heatmaps.attention_heat(photo, weights_RC, (1.0, 1.0), box, full=PEAK / weights_RC.size)
    else:
        points_VN2 = attention_map.points_HVP2.swapaxes(0, 1).reshape(attention_map.points_HVP2.shape[1], -1, 2)
        weights_VN = attention_map.weights_HVP.swapaxes(0, 1).reshape(len(points_VN2), -1)
        drawn = heatmaps.point_heat(photo, points_VN2, weights_VN, box)
    if point is not None:
        heatmaps.draw_cross(drawn, point)
    return drawn


def _heads(
    photo: Image.Image,
    attention_map: AttentionMap,
    box: Box | None = None,
    point: Point | None = None,
    region: Box | None = None,
) -> list[Picture]:
    """The attention of each head, with a cross at the point, or a part of the image in close-up."""
    n_heads = len(attention_map.weights_HRC if isinstance(attention_map, CellMap) else attention_map.weights_HVP)
    if region is None:
        heads = [attention_picture(photo, attention_map.head(h), box, point) for h in range(n_heads)]
    else:
        heads = [_close_up(photo, attention_map.head(h), box, region) for h in range(n_heads)]
    return [_picture(drawn, f"head {h + 1}") for h, drawn in enumerate(heads)]


def _picture(drawn: Image.Image, title: str, detail: str = "") -> Picture:
    return Picture(html.image_address(drawn), title=title, detail=detail)

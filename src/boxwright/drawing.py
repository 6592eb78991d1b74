"""Boxes with labels, drawn on images. Nothing here needs torch or matplotlib."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

if TYPE_CHECKING:
    from boxwright.detections import Detections

# fmt: off
_PALETTE = (
    "#2f7ef6", "#f5741d", "#16a85a", "#e5304d", "#9457f5", "#0fb0c4", "#ef4fae", "#b39b00", "#8a5a3c", "#5f7f95",
    "#7fb800", "#c2185b", "#3d5afe", "#00897b", "#ff9e80", "#6d4c9f", "#d4a017", "#546e7a", "#4caf50", "#a1887f",
)
# fmt: on
_SMALLEST = 640  # long side of a drawn image: smaller ones are enlarged
_MOST_LABELS = 40  # more would cover the image


def colour(label: int) -> str:
    """The colour of a class by its position, the same in every image; there are twenty, then they repeat."""
    return _PALETTE[label % len(_PALETTE)]


def draw(image: Image.Image, detections: Detections, threshold: float = 0.0) -> Image.Image:
    """A copy of the image with the detections whose score is over `threshold`, each with class and score.

    Small images are enlarged (by a whole factor, to at least 640 pixels on the long side) so that labels can be read.
    """
    found = detections.above(threshold)
    best_first = np.argsort(-found.scores_N, kind="stable")
    boxes = [
        LabelledBox(
            found.boxes_N4[i], f"{found.names[found.labels_N[i]]} {found.scores_N[i]:.2f}", colour(found.labels_N[i])
        )
        for i in best_first
    ]
    return draw_boxes(image, boxes)


def draw_named(image: Image.Image, boxes_N4: np.ndarray, texts: Sequence[str], labels: Sequence[int]) -> Image.Image:
    """A copy of the image with these boxes (xyxy, pixels), the first on top, each with its text; see `draw`."""
    boxes = [LabelledBox(box, text, colour(label)) for box, text, label in zip(boxes_N4, texts, labels, strict=True)]
    return draw_boxes(image, boxes)


@dataclass
class LabelledBox:
    """A box with its text and colour."""

    box: np.ndarray  # xyxy, pixels
    text: str
    colour: str


def draw_boxes(image: Image.Image, labelled: Sequence[LabelledBox]) -> Image.Image:
    """A copy of the image with boxes, the first on top, then labels where they cover no other; see `draw`."""
    factor = max(1, math.ceil(_SMALLEST / max(image.size)))
    canvas = image.convert("RGB").resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(canvas)
    unit = math.sqrt(canvas.width * canvas.height) / 100
    crowded = len(labelled) > 12
    line = max(2, round(unit * (0.34 if crowded else 0.5)))
    letters = font(max(11, round(unit * (1.9 if crowded else 2.4))))
    boxes = [_corners(one.box * factor, canvas) for one in labelled]
    for one, box in reversed(list(zip(labelled, boxes, strict=True))):
        pen.rectangle(_enlarged(box, 1), outline="black", width=line + 2)
        pen.rectangle(box, outline=one.colour, width=line)
    taken: list[tuple[float, float, float, float]] = []
    for one, box in list(zip(labelled, boxes, strict=True))[:_MOST_LABELS]:
        _draw_label(pen, one, box, letters, canvas, taken)
    return canvas


def _corners(box: np.ndarray, canvas: Image.Image) -> tuple[int, int, int, int]:
    """The box in whole pixels, x1 <= x2 and y1 <= y2, clipped to the image; NaN becomes 0."""
    limit = np.array([canvas.width, canvas.height] * 2) - 1
    x1, y1, x2, y2 = np.nan_to_num(box).round().clip(0, limit).astype(int).tolist()
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def _enlarged(box: tuple[int, int, int, int], by: int) -> tuple[int, int, int, int]:
    return box[0] - by, box[1] - by, box[2] + by, box[3] + by


def _draw_label(
    pen: ImageDraw.ImageDraw,
    labelled: LabelledBox,
    box: tuple[int, int, int, int],
    letters: ImageFont.FreeTypeFont,
    canvas: Image.Image,
    taken: list[tuple[float, float, float, float]],
) -> None:
    """Draw the label at the first position where it covers no other; if there is none, leave it out."""
    rise, fall = letters.getmetrics()
    pad = max(2, rise // 5)
    width, height = letters.getlength(labelled.text) + 2 * pad, rise + fall
    for x, y in _label_positions(box, width, height):
        x, y = min(max(x, 0), max(canvas.width - width, 0)), y
        spot = (x, y, x + width, y + height)
        if 0 <= y <= canvas.height - height and not any(_overlap(spot, other) for other in taken):
            taken.append(spot)
            pen.rounded_rectangle(spot, radius=pad, fill=labelled.colour)
            pen.text(
                (x + pad, y + height / 2), labelled.text, fill=text_colour(labelled.colour), font=letters, anchor="lm"
            )
            return


def text_colour(background: str) -> str:
    """White or black, whichever can be read better: one of them has a contrast of 4.5 with every colour."""
    lightness = luminance(background)
    return "white" if (1 + 0.05) / (lightness + 0.05) >= (lightness + 0.05) / 0.05 else "black"


def luminance(colour: str) -> float:
    """Relative luminance of a colour such as ``#2f7ef6``, from 0 to 1 (WCAG 2.2)."""
    parts = [value / 255 for value in ImageColor.getrgb(colour)[:3]]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _label_positions(box: tuple[int, int, int, int], width: float, height: float) -> Iterator[tuple[float, float]]:
    """Top left corners for a label: above, inside and below the box, each at its left, then at its right end."""
    left, top, right, bottom = box
    for y in (top - height, top, bottom, bottom - height):
        yield left, y
        yield right - width, y


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@lru_cache(maxsize=64)
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which has most alphabets, if matplotlib is installed (not imported, which takes a second); else
    Pillow's own font.
    """
    matplotlib = find_spec("matplotlib")
    if matplotlib is None or matplotlib.origin is None:
        return ImageFont.load_default(size)  # type: ignore[return-value]
    return ImageFont.truetype(Path(matplotlib.origin).parent / "mpl-data/fonts/ttf/DejaVuSans-Bold.ttf", size)

"""Pictures of a data set for its page: images with their boxes, one box close up, heat maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from boxwright.config import UserError
from boxwright.data.parsed import ParsedImage
from boxwright.drawing import LabelledBox, colour, draw_boxes
from boxwright.images import open_image
from boxwright.visualization.html import image_address

SIDE = 480  # pixels, of the longer side
_CLOSE = 12  # a box shorter than this part of the image is shown close up ...
_AROUND = 4  # ... with so many times its size on each side ...
_LEAST = 48  # ... and at least so many pixels
_OTHERS = "#8f8f8f"
_HEAT = ((247, 249, 252), (158, 197, 244), (47, 126, 246), (16, 45, 110))


@dataclass(frozen=True)
class Picture:
    """A picture on the page: its address, its alternative text, and the text under it."""

    address: str
    description: str
    caption: str


def draw(image: ParsedImage, names: Sequence[str], caption: str, chosen: int | None = None) -> Picture | None:
    """An image with its boxes; where one is chosen, the others are grey. None if it can't be decoded."""
    try:
        photo = open_image(image.path)
    except UserError:
        return None
    boxes_N4 = np.asarray(image.boxes, np.float64).reshape(-1, 4) * _scale(image, photo)
    labelled = [_label(boxes_N4[i], i, image, names, chosen) for i in range(len(boxes_N4))]
    labelled.sort(key=lambda one: one.colour == _OTHERS)  # the chosen one on top
    corner = np.zeros(2)
    if chosen is not None:
        photo, corner = _close_up(photo, boxes_N4[chosen])
    for one in labelled:
        one.box = one.box - np.tile(corner, 2)
    labelled = [one for one in labelled if _is_inside(one.box, photo) or one.colour != _OTHERS]
    drawn = draw_boxes(photo, labelled)
    drawn.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return Picture(image_address(drawn), _describe(image, names, chosen), caption)


def _scale(image: ParsedImage, photo: Image.Image) -> np.ndarray:
    """From pixels of the record to those of the file, where the record gives another size of the same shape."""
    same = image.width > 0 and image.height > 0
    return np.tile(np.array(photo.size) / (image.width, image.height), 2) if same else np.ones(4)


def _label(box_4: np.ndarray, i: int, image: ParsedImage, names: Sequence[str], chosen: int | None) -> LabelledBox:
    if chosen not in (None, i):
        return LabelledBox(box_4, "", _OTHERS)
    return LabelledBox(box_4, names[image.labels[i]], colour(int(image.labels[i])))


def _is_inside(box_4: np.ndarray, photo: Image.Image) -> bool:
    return bool((box_4[2:] > 0).all() and (box_4[:2] < photo.size).all())


def _close_up(photo: Image.Image, box_4: np.ndarray) -> tuple[Image.Image, np.ndarray]:
    """The part of the image around a small box, and where that begins; the whole image for others."""
    size_2 = np.array(photo.size)
    start_2, end_2 = np.sort(np.nan_to_num(box_4).clip(0, np.tile(size_2, 2)).reshape(2, 2), axis=0)
    longest = (end_2 - start_2).max()
    if longest * _CLOSE >= size_2.max():
        return photo, np.zeros(2)
    half = max(longest * (_AROUND + 0.5), _LEAST)
    middle_2 = ((start_2 + end_2) / 2).clip(half, np.maximum(size_2 - half, half))
    first_2 = (middle_2 - half).clip(0).astype(int)
    last_2 = np.minimum(middle_2 + half, size_2).astype(int)
    return photo.crop((*first_2.tolist(), *last_2.tolist())), first_2.astype(float)


def _describe(image: ParsedImage, names: Sequence[str], chosen: int | None) -> str:
    """The alternative text: which image, and what is drawn on it."""
    if chosen is not None:
        return f"{image.path.name}, with one {names[image.labels[chosen]]} marked"
    counts: dict[str, int] = {}
    for label in image.labels:
        counts[names[label]] = counts.get(names[label], 0) + 1
    listed = ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda item: -item[1])[:6])
    return f"{image.path.name}, with boxes: {listed}" if listed else f"{image.path.name}, without boxes"


def heat(share_GG: np.ndarray, title: str) -> Picture:
    """A heat map of a share (GRID, GRID) of boxes; its highest value is the darkest."""
    highest = float(share_GG.max()) or 1.0
    place_GG = share_GG / highest * (len(_HEAT) - 1)
    steps = np.arange(len(_HEAT))
    pixels = np.stack([np.interp(place_GG, steps, [shade[c] for shade in _HEAT]) for c in range(3)], axis=-1)
    picture = Image.fromarray(pixels.round().astype(np.uint8)).resize((SIDE // 2,) * 2, Image.Resampling.BICUBIC)
    third = len(share_GG) // 3
    middle = share_GG[third:-third, third:-third].sum() / (share_GG.sum() or 1.0)
    text = f"{middle:.0%} of what boxes cover is in the middle ninth; the darkest cell is in {highest:.0%} of them"
    return Picture(image_address(picture), f"Heat map of where boxes of {title} lie: {text}", f"{title}: {text}")

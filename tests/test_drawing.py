"""Boxes and labels are drawn where they belong, on images of any size."""

import numpy as np
import pytest
from PIL import Image, ImageColor, ImageDraw

from boxwright.drawing import LabelledBox, _draw_label, _overlap, colour, draw, font, luminance, text_colour
from boxwright.types import Detections

NAMES = ("cat", "dog")


def found(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int64), NAMES)


def count(picture: Image.Image, colour: str) -> int:
    """Pixels of exactly this colour."""
    return int((np.asarray(picture) == ImageColor.getrgb(colour)).all(-1).sum())


def test_draw_keeps_to_the_threshold_and_leaves_the_image_alone() -> None:
    image = Image.new("RGB", (640, 480))
    detections = found((50, 60, 200, 300, 0.9, 0), (300, 100, 500, 400, 0.4, 1))
    picture = draw(image, detections, threshold=0.5)
    assert picture.size == image.size
    assert count(picture, colour(0)) > 1000
    assert count(picture, colour(1)) == 0
    assert count(draw(image, detections), colour(1)) > 1000
    assert np.asarray(image).max() == 0


def test_the_box_is_where_it_should_be() -> None:
    picture = np.asarray(draw(Image.new("RGB", (640, 480)), found((100, 200, 300, 400, 0.9, 0))))
    blue = (picture == ImageColor.getrgb(colour(0))).all(-1)
    rows, columns = np.nonzero(blue)
    assert (columns.min(), columns.max(), rows.max()) == (100, 300, 400)
    assert blue[200, 100:301].sum() > 190


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (40, 30), (640, 480), (4000, 300), (3000, 2000)])
def test_any_size_can_be_labelled(size: tuple[int, int]) -> None:
    width, height = size
    picture = draw(Image.new("RGB", size), found((0, 0, width, height, 0.9, 0), (-50, -50, 9e9, 9e9, 0.5, 1)))
    assert max(picture.size) >= 640
    assert picture.width * height == picture.height * width


def test_labels_never_cover_each_other() -> None:
    spots: list = []
    letters = font(14)
    canvas = Image.new("RGB", (640, 480))
    pen = ImageDraw.Draw(canvas)
    for i in range(30):
        _draw_label(
            pen, LabelledBox(np.zeros(4), f"cat 0.{i}", "red"), (100 + i, 100, 300, 300), letters, canvas, spots
        )
    assert 4 <= len(spots) < 30
    assert not any(_overlap(a, b) for i, a in enumerate(spots) for b in spots[:i])


def test_odd_boxes_are_drawn_somewhere() -> None:
    draw(Image.new("RGB", (100, 100)), found((np.nan, 0, 50, 50, 0.9, 0), (80, 80, 20, 20, 0.8, 1)))


def test_colours_repeat_after_twenty() -> None:
    assert len({colour(k) for k in range(20)}) == 20
    assert colour(3) == colour(23)


@pytest.mark.parametrize("label", range(20))
def test_labels_can_be_read(label):
    dark, light = sorted(luminance(name) for name in (colour(label), text_colour(colour(label))))
    assert (light + 0.05) / (dark + 0.05) >= 4.5

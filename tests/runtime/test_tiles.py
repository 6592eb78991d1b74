"""Tiles cover the image, and what several views see of an object becomes one box."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from boxwright.config import UserError
from boxwright.detections import Detections
from boxwright.inference.predictor import Predictor
from boxwright.runtime.tiles import Tiling, merge

NAMES = ("cat", "dog")


def found(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(int), NAMES)


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(32, 900), st.floats(0, 0.89))
def test_tiles_cover_the_image_and_overlap(width, height, side, overlap):
    tiles = Tiling(side, overlap).tiles(width, height)
    if max(width, height) <= side:
        assert len(tiles) == 0
        return
    assert (tiles[:, :2] >= 0).all()
    assert (tiles[:, 2:] <= (width, height)).all()
    for axis, length in enumerate((width, height)):
        starts, ends = np.unique(tiles[:, axis]), np.unique(tiles[:, axis + 2])
        assert (starts[0], ends[-1]) == (0, length)
        assert set(tiles[:, axis + 2] - tiles[:, axis]) == {min(side, length)}
        assert (ends[:-1] - starts[1:] >= side * overlap - 1).all()
        assert len(tiles) == len(np.unique(tiles[:, 0])) * len(np.unique(tiles[:, 1]))


@pytest.mark.parametrize("side", [31, 0, -5, 100.5, True, "640"])
def test_sides_that_are_none(side):
    with pytest.raises(UserError, match="a tile has a side of at least 32 pixels"):
        Tiling(side)


@pytest.mark.parametrize("overlap", [-0.1, 0.9, 2, "a", float("nan")])
def test_overlaps_that_are_none(overlap):
    with pytest.raises(UserError, match=r"at least 0 and under 0\.9"):
        Tiling(640, overlap)


TILES = np.array([(0, 0, 100, 100), (80, 0, 180, 100)])


@pytest.mark.parametrize(
    ("views", "boxes"),
    [
        # seen in both tiles: the box of the better score
        ([found(), found((85, 10, 95, 30, 0.6, 0)), found((5, 10, 15, 31, 0.8, 0))], [(85, 10, 95, 31)]),
        # cut by an edge of each tile, whole in the image, whose score is lower
        (
            [found((40, 10, 140, 60, 0.4, 0)), found((40, 10, 100, 60, 0.9, 0)), found((0, 10, 60, 60, 0.8, 0))],
            [(40, 10, 140, 60)],
        ),
        # in the whole image only, though a tile shows the place
        ([found((40, 40, 60, 60, 0.9, 0)), found(), found()], []),
        # too large for a tile
        ([found((10, 10, 170, 90, 0.9, 0)), found(), found()], [(10, 10, 170, 90)]),
        # another class
        (
            [found(), found((85, 10, 95, 30, 0.6, 0)), found((5, 10, 15, 30, 0.5, 1))],
            [(85, 10, 95, 30), (85, 10, 95, 30)],
        ),
        # two objects of one view, one in the other
        (
            [found(), found((10, 10, 60, 60, 0.9, 0), (12, 10, 60, 60, 0.8, 0)), found()],
            [(10, 10, 60, 60), (12, 10, 60, 60)],
        ),
        # at the edge of the image, which cuts nothing off
        (
            [found(), found((0, 0, 30, 30, 0.5, 0)), found((70, 70, 100, 100, 0.4, 0))],
            [(0, 0, 30, 30), (150, 70, 180, 100)],
        ),
        ([found(), found(), found()], []),
    ],
)
def test_views_become_one(views, boxes):
    merged = merge(views, TILES, (180, 100))
    np.testing.assert_array_equal(merged.boxes_N4, np.array(boxes).reshape(-1, 4))
    assert (np.diff(merged.scores_N) <= 0).all()
    assert (merged.boxes_N4.dtype, merged.scores_N.dtype, merged.names) == (np.float32, np.float32, NAMES)


@pytest.mark.parametrize("box", [(700, 300, 740, 330), (0, 0, 50, 40), (190, 190, 230, 240), (940, 550, 1000, 600)])
def test_a_small_object_has_an_exact_box(white_boxes, tmp_path, box):
    """A pixel of the canvas of 64 is 16 of the image, and 3 of a tile."""
    image = Image.new("RGB", (1000, 600), (20, 30, 40))
    image.paste("white", box)
    image.save(tmp_path / "x.png")
    predictor = Predictor(white_boxes)
    whole = predictor.predict(image)
    for given_as in (image, tmp_path / "x.png"):
        tiled = predictor.predict(given_as, tile=200)
        np.testing.assert_allclose(tiled.boxes_N4, [box], atol=3.2)
    ((_, streamed),) = predictor.stream(tmp_path, tile=200, batch_size=3)
    np.testing.assert_array_equal(streamed.boxes_N4, tiled.boxes_N4)
    assert streamed.size == (1000, 600)
    np.testing.assert_array_equal(predictor.predict(image, tile=1000).boxes_N4, whole.boxes_N4)


def test_given_objects_are_those_of_a_whole_image(white_boxes):
    with pytest.raises(UserError, match="leave --tile out"):
        Predictor(white_boxes).predict(Image.new("RGB", (500, 500)), tile=100, objects=3)

"""Heat maps keep all probability, and put it where it belongs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageColor

from boxwright.visualization import heatmaps

GREY = Image.new("RGB", (90, 60), (128, 128, 128))


def bins(at: int, of: int = 1000) -> np.ndarray:
    values = np.zeros(of, np.float32)
    values[at] = 1
    return values


@given(st.integers(2, 2000), st.integers(1, 700), st.integers(0, 2**32))
def test_pixels_share_all_probability(of: int, pixels: int, seed: int) -> None:
    values = np.random.default_rng(seed).dirichlet(np.ones(of)).astype(np.float32)
    spread = heatmaps.pixel_probabilities(values, pixels, valid=1.0)
    assert spread.shape == (pixels,)
    assert spread.sum() == pytest.approx(1, abs=1e-4)
    assert (spread >= 0).all()


@given(st.integers(0, 999), st.floats(0.1, 1.0))
def test_a_coordinate_falls_on_the_pixel_that_it_means(at: int, valid: float) -> None:
    spread = heatmaps.pixel_probabilities(bins(at), 100, valid)
    pixel = at / 999 / valid * 100
    if pixel > 101:
        assert spread.sum() == pytest.approx(0)
    elif pixel < 99:
        assert (spread * (np.arange(100) + 0.5)).sum() / spread.sum() == pytest.approx(pixel, abs=0.6)


def test_the_product_of_both_distributions_adds_up_to_one() -> None:
    y, x = heatmaps.pixel_probabilities(bins(300), 60, 1.0), heatmaps.pixel_probabilities(bins(700), 90, 1.0)
    assert np.outer(y, x).sum() == pytest.approx(1)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_chosen_place_is_the_hottest(axis: int) -> None:
    picture = np.asarray(heatmaps.coordinate_heat(GREY, bins(300), (0.6, 0.9), 0.3, axis), float)
    assert picture.shape == (60, 90, 3)
    middle = picture[:, 45].sum(-1) if axis == 0 else picture[30].sum(-1)
    assert middle.argmax() == pytest.approx((0.5 * 60, 0.3 / 0.9 * 90)[axis], abs=1.01)


def test_the_corner_is_the_hottest() -> None:
    picture = np.asarray(heatmaps.corner_heat(GREY, bins(500), bins(250), (1.0, 1.0), (0.5, 0.25)), float)
    red = picture[..., 0] * (picture[..., 2] < 160)  # not the ring
    assert np.unravel_index(red.argmax(), red.shape) == pytest.approx((30, 22), abs=1.01)


def test_attention_is_cut_to_the_part_that_is_image() -> None:
    cells = np.zeros((4, 4), np.float32)
    cells[0, 3] = 1
    picture = np.asarray(heatmaps.attention_heat(GREY, cells, (0.5, 1.0), (0.1, 0.1, 0.2, 0.2)), float).sum(-1)
    y, x = np.unravel_index(picture.argmax(), picture.shape)
    assert x > 67
    assert y < 30
    cells = np.zeros((4, 4), np.float32)
    cells[3, 3] = 1  # in the padding
    blank = np.asarray(heatmaps.attention_heat(GREY, cells, (0.5, 1.0)))
    assert (blank == blank[0, 0]).all()


def test_no_heat_at_all_is_no_fault() -> None:
    assert heatmaps.heat(GREY, np.zeros((60, 90)), 0.5).size == (90, 60)
    heatmaps.corner_heat(GREY, bins(999), bins(999), (0.1, 0.1), (1.0, 1.0), (2.0, 3.0, 1.0, 0.5))


def test_points_are_where_they_should_be_and_as_large_as_their_weights() -> None:
    places = np.array([[[0.25, 0.5], [2.0, 2.0]], [[0.75, 0.5], [-1.0, 0.5]]])
    picture = np.asarray(heatmaps.point_heat(GREY, places, np.array([[0.4, 0.4], [0.1, 0.1]])), int)
    masses = []
    for v, x in ((0, 22), (1, 67)):
        near = np.abs(picture - ImageColor.getrgb(heatmaps.MAP_COLOURS[v])).sum(-1) < 60
        rows, columns = np.nonzero(near)
        assert (columns.mean(), rows.mean()) == pytest.approx((x, 30), abs=1)
        masses.append(near.sum())
    assert masses[0] > 1.5 * masses[1] > 0


def test_points_of_no_weight_and_all_in_one_place_are_no_fault() -> None:
    assert heatmaps.point_heat(GREY, np.zeros((1, 3, 2)), np.zeros((1, 3)), (0, 0, 1, 1)).size == (90, 60)
    picture = GREY.copy()
    heatmaps.draw_cross(picture, (1.0, 0.0))
    assert np.asarray(picture).std() > 0


def test_even_attention_is_not_brought_to_full_heat() -> None:
    even = np.full((4, 4), 1 / 16, np.float32)
    faint, full = (np.asarray(heatmaps.attention_heat(GREY, even, (1.0, 1.0), None, peak), int) for peak in (0.25, 0.0))
    assert faint.sum() < 0.7 * full.sum()
    assert faint.std((0, 1)).max() < 1


def test_the_heaviest_box_is_brightest_and_faint_ones_are_left_out() -> None:
    boxes_N4 = np.array([[0.1, 0.1, 0.3, 0.4], [0.5, 0.5, 0.9, 0.9], [0.4, 0.05, 0.6, 0.2]])
    dimmed = np.asarray(heatmaps.box_heat(GREY, boxes_N4, np.zeros(3)))
    assert (dimmed == dimmed[0, 0]).all()
    drawn = np.asarray(heatmaps.box_heat(GREY, boxes_N4, np.array([0.2, 0.7, 0.0001]))).astype(int).sum(-1)
    assert drawn[30, 45] == drawn.max()  # the corner of the second
    assert dimmed[0, 0].astype(int).sum() != drawn[6, 9] < drawn.max()
    assert drawn[3, 45] == dimmed[0, 0].astype(int).sum()
    reversed_N4 = boxes_N4[:, [2, 3, 0, 1]]
    weights_N = np.array([0.2, 0.7, 0.1])
    again = heatmaps.box_heat(GREY, reversed_N4, weights_N, (0.9, 0.9, 0.5, 0.5))
    assert again == heatmaps.box_heat(GREY, boxes_N4, weights_N, (0.5, 0.5, 0.9, 0.9))

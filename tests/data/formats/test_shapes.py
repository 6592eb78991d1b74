"""Boxes around masks and turned shapes, against other code and against points on the outline."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from boxwright.data.formats.shapes import (
    MalformedError,
    decode_runs,
    ellipse_box,
    mask_box,
    segmentation_box,
    turned_box,
)

mask_tools = pytest.importorskip("pycocotools.mask")
MASKS = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 1))
)


@settings(deadline=None, max_examples=200)
@given(mask_HW=MASKS)
def test_masks_as_pycocotools_sees_them(mask_HW):
    packed = mask_tools.encode(np.asfortranarray(mask_HW))
    counts = packed["counts"].decode()
    runs_R = decode_runs(counts)
    assert np.array_equal(np.repeat(np.arange(len(runs_R)) % 2, runs_R), mask_HW.T.ravel())
    rle = {"size": list(mask_HW.shape), "counts": counts}
    if mask_HW.any():
        x, y, w, h = mask_tools.toBbox(packed)
        assert mask_box(rle) == mask_box(rle | {"counts": runs_R.tolist()}) == (x, y, x + w, y + h)
    else:
        with pytest.raises(MalformedError, match="empty"):
            mask_box(rle)


@settings(deadline=None, max_examples=300)
@given(counts=st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=30), size=st.integers(-1, 50))
def test_any_text_as_runs_is_a_box_or_malformed(counts, size):
    try:
        x1, y1, x2, y2 = segmentation_box({"counts": counts, "size": [size, size]})
    except MalformedError:
        return
    assert 0 <= x1 < x2 <= size
    assert 0 <= y1 < y2 <= size


@given(angle=st.floats(-400, 400), a=st.floats(1, 30), b=st.floats(1, 30))
def test_turned_shapes_touch_their_boxes(angle, a, b):
    turn, t_P = math.radians(angle), np.linspace(0, 2 * math.pi, 3601)
    x_P, y_P = a * np.cos(t_P), b * np.sin(t_P)
    points_2P = np.array([x_P * math.cos(turn) - y_P * math.sin(turn), x_P * math.sin(turn) + y_P * math.cos(turn)])
    expected = (*points_2P.min(1), *points_2P.max(1))
    assert np.allclose(ellipse_box(0, 0, a, b, angle), expected, atol=1e-3)
    radius = math.hypot(a, b)
    box = turned_box((-a, -b, a, b), angle, (0, 0))
    assert max(map(abs, box)) <= radius + 1e-9
    assert np.allclose(box[:2], [-box[2], -box[3]])

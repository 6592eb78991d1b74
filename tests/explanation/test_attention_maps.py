"""Where a detector looked, against the numbers that its layers really used."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from boxwright.explanation.attention_maps import Cells, Pass, Points, _cell, watch
from boxwright.images import open_image
from boxwright.inference.predictor import to_batch
from boxwright.models.layers.attention import Attention
from boxwright.models.layers.deformable_attention import SamplingPoints as Sampled
from boxwright.models.layers.deformable_attention import gather_points
from boxwright.runtime.inputs import DecodedImage
from boxwright.types import Batch
from helpers.query_detectors import small_query_detector


@pytest.fixture
def wide(paint: Callable[..., Path], tmp_path: Path) -> Batch:
    """An image that fills but two thirds of its canvas."""
    photo = open_image(paint(tmp_path / "x.png", (120, 80), (30, 20, 90, 60)))
    return to_batch([DecodedImage(photo, photo.size)], 96)


@pytest.mark.parametrize("kind", ["detr", "deformable"])
def test_what_queries_say_is_what_the_detector_decodes(kind: str, wide: Batch) -> None:
    detector = small_query_detector(kind)
    seen = watch(detector, wide)
    with torch.no_grad():
        found = detector.decode(detector(wide.images_BCHW, wide.sizes_B2)).to_detections(wide, detector.names)[0]
    best = seen.best(1)[0]
    label, score = seen.said(best)
    assert (label, score) == (found.labels_N[0], pytest.approx(float(found.scores_N[0]), abs=1e-6))
    np.testing.assert_allclose(
        np.clip(seen.box(best), 0, 1) * np.array([120, 80, 120, 80]), found.boxes_N4[0], atol=0.01
    )


@pytest.mark.parametrize(
    ("kind", "more"),
    [("detr", {"pre_norm": True}), ("deformable", {"begin": "table"}),
     ("deformable", {"begin": "table", "refine": True}), ("deformable", {"begin": "proposals", "refine": True})],
)  # fmt: skip
def test_the_published_forms_can_be_watched(kind: str, more: dict[str, Any], wide: Batch) -> None:
    seen = watch(small_query_detector(kind, **more), wide)
    assert (seen.layers, seen.queries) == (2, 7)
    for look in (*seen.query_looks(6), *(look for layer in seen.pixel_looks((1.0, 1.0)) for look in layer)):
        assert all(np.isfinite(part).all() for part in vars(look).values())


@pytest.mark.parametrize("kind", ["detr", "deformable"])
def test_shares_add_up_to_one_for_each_head(kind: str, wide: Batch) -> None:
    seen = watch(small_query_detector(kind), wide)
    looks = [look for query in range(7) for look in seen.query_looks(query)]
    looks += [look for layer in seen.pixel_looks((0.3, 0.9)) for look in layer]
    assert len(looks) == 7 * 2 + 2 * len(seen.shapes)
    for look in looks:
        shares = look.shares_HRC if isinstance(look, Cells) else look.weights_HVP
        np.testing.assert_allclose(shares.sum((1, 2)), 1, atol=1e-5)
        assert len(shares) == 4
    assert seen.lookers((0.3, 0.9)).shape == (7,)


def test_cells_give_what_the_layer_gathered(wide: Batch) -> None:
    seen = watch(small_query_detector("detr"), wide)
    for noted, shares in ((seen.decoder[1], [seen.query_looks(q)[1] for q in range(7)]),):
        attention, (x_BLE, source), named = noted
        assert isinstance(attention, Attention)
        weights_HLM = torch.tensor(np.stack([look.shares_HRC for look in shares], 1)).flatten(2)
        with torch.no_grad():
            again_BLE = attention.output((weights_HLM @ source.values_BHLE[0]).transpose(0, 1).flatten(1))
            torch.testing.assert_close(again_BLE, attention(x_BLE, source, mask=named["mask"])[0], atol=1e-5, rtol=1e-4)


def test_points_give_what_the_layer_gathered(wide: Batch) -> None:
    seen = watch(small_query_detector("deformable"), wide)
    attention, (x_BLE, places, cells_BTE, hidden_BT, shapes), _ = seen.decoder[1]
    looks = [seen.query_looks(q)[1] for q in range(7)]
    assert all(isinstance(look, Points) for look in looks)
    sampled = Sampled(*(torch.tensor(np.stack([getattr(look, name) for look in looks]))[None]
                        for name in ("places_HVP2", "weights_HVP")))  # fmt: skip
    with torch.no_grad():
        values = attention.value(cells_BTE).unflatten(-1, (4, -1))
        again = attention.output(gather_points(values, shapes, sampled))
        torch.testing.assert_close(again, attention(x_BLE, places, cells_BTE, hidden_BT, shapes))


def test_padding_is_not_looked_at(wide: Batch) -> None:
    assert watch(small_query_detector("detr"), wide).shapes == [(4, 6)]
    assert watch(small_query_detector("deformable"), wide).shapes == [(8, 12), (4, 6)]


def test_the_query_that_looks_at_a_pixel_is_found() -> None:
    shares = np.zeros((1, 2, 2))
    shares[0, 1, 0] = 1
    cells, points = Cells(shares), Points(np.array([[[[0.2, 0.9]]]]), np.ones((1, 1, 1)))
    for look in (cells, points):
        seen = Pass(np.zeros((1, 1, 1)), np.zeros((1, 1, 4)), ("cat",), [(2, 2)], [], [None])  # type: ignore[list-item]
        seen._look = lambda *_, look=look: [look]  # type: ignore[method-assign]
        assert seen.lookers((0.2, 0.9))[0] == pytest.approx(1)
        assert seen.lookers((0.8, 0.1))[0] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("point", "cell"), [((0, 0), 0), ((1, 1), 5), ((0.5, 0.49), 1), ((0.99, 0.51), 5)])
def test_a_point_lies_in_one_cell(point: tuple[float, float], cell: int) -> None:
    assert _cell(point, (2, 3)) == cell

"""Recorded attention, against what the layers really computed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from boxwright.explanation.attention_maps import CellMap, PointMap, RecordedPass, _cell, record_pass
from boxwright.images import open_image
from boxwright.inference.predictor import to_batch
from boxwright.models.layers.attention import Attention
from boxwright.models.layers.deformable_attention import SamplingPoints, gather_points
from boxwright.runtime.inputs import DecodedImage
from boxwright.types import Batch
from helpers.query_detectors import small_query_detector


@pytest.fixture
def wide(paint: Callable[..., Path], tmp_path: Path) -> Batch:
    """An image that fills but two thirds of its canvas."""
    photo = open_image(paint(tmp_path / "x.png", (120, 80), (30, 20, 90, 60)))
    return to_batch([DecodedImage(photo, photo.size)], 96)


@pytest.mark.parametrize("kind", ["detr", "proposing", "deformable"])
def test_predictions_of_queries_are_those_that_the_detector_decodes(kind: str, wide: Batch) -> None:
    detector = small_query_detector(kind)
    recorded = record_pass(detector, wide)
    with torch.no_grad():
        found = detector.decode(detector(wide.images_BCHW, wide.sizes_B2)).to_detections(wide, detector.names)[0]
    best = recorded.best(1)[0]
    label, score = recorded.prediction(best)
    assert (label, score) == (found.labels_N[0], pytest.approx(float(found.scores_N[0]), abs=1e-6))
    np.testing.assert_allclose(
        np.clip(recorded.box(best), 0, 1) * np.array([120, 80, 120, 80]), found.boxes_N4[0], atol=0.01
    )


@pytest.mark.parametrize(
    ("kind", "more"),
    [("detr", {"pre_norm": True}), ("deformable", {"begin": "table"}),
     ("deformable", {"begin": "table", "refine": True}), ("deformable", {"begin": "proposals", "refine": True})],
)  # fmt: skip
def test_the_published_forms_can_be_recorded(kind: str, more: dict[str, Any], wide: Batch) -> None:
    recorded = record_pass(small_query_detector(kind, **more), wide)
    assert (recorded.n_layers, recorded.n_queries) == (2, 7)
    for one in (*recorded.query_maps(6), *(one for layer in recorded.pixel_maps((1.0, 1.0)) for one in layer)):
        assert all(np.isfinite(part).all() for part in vars(one).values())


@pytest.mark.parametrize("kind", ["detr", "proposing", "deformable"])
def test_weights_add_up_to_one_for_each_head(kind: str, wide: Batch) -> None:
    recorded = record_pass(small_query_detector(kind), wide)
    maps = [one for query in range(7) for one in recorded.query_maps(query)]
    maps += [one for layer in recorded.pixel_maps((0.3, 0.9)) for one in layer]
    assert len(maps) == 7 * 2 + 2 * (len(recorded.map_shapes) - (kind == "proposing"))  # its finest map doesn't attend
    for one in maps:
        weights = one.weights_HRC if isinstance(one, CellMap) else one.weights_HVP
        np.testing.assert_allclose(weights.sum((1, 2)), 1, atol=1e-5)
        assert len(weights) == 4
    assert recorded.attention_to((0.3, 0.9)).shape == (7,)


def test_weights_of_cells_give_the_output_of_the_layer(wide: Batch) -> None:
    recorded = record_pass(small_query_detector("detr"), wide)
    for call, weights in ((recorded.decoder[1], [recorded.query_maps(q)[1] for q in range(7)]),):
        attention, (x_BLE, source), kwargs = call
        assert isinstance(attention, Attention)
        weights_HLM = torch.tensor(np.stack([one.weights_HRC for one in weights], 1)).flatten(2)
        with torch.no_grad():
            again_BLE = attention.output((weights_HLM @ source.values_BHLE[0]).transpose(0, 1).flatten(1))
            torch.testing.assert_close(
                again_BLE, attention(x_BLE, source, mask=kwargs["mask"])[0], atol=1e-5, rtol=1e-4
            )


def test_weights_of_several_maps_are_spread_over_the_finest(wide: Batch) -> None:
    """Also where its side is no multiple of theirs; the weights are those with which the layer computes."""
    odd = Batch(**vars(wide) | {"sizes_B2": torch.tensor([[55, 87]])})
    recorded = record_pass(small_query_detector("proposing"), odd)
    assert recorded.map_shapes == [(7, 11), (4, 6), (2, 3)]
    attention, (x_BQE, source), kwargs = recorded.decoder[1]
    with torch.no_grad():
        weights_HQM = attention.weights(x_BQE, source, kwargs["mask"])[0]
        mixed_HQE = (weights_HQM @ source.values_BHLE[0])[..., :8]
        again_QE = attention.output(mixed_HQE.transpose(0, 1).flatten(1))
        torch.testing.assert_close(again_QE, attention(x_BQE, source, mask=kwargs["mask"])[0], atol=1e-5, rtol=1e-4)
    drawn_HRC = recorded.query_maps(3)[1].weights_HRC  # type: ignore[union-attr]
    assert drawn_HRC.shape == (4, 7, 11)
    np.testing.assert_allclose(drawn_HRC.sum((1, 2)), 1, atol=1e-5)
    fine_HRC = weights_HQM[:, 3, :77].unflatten(-1, (7, 11)).numpy()
    coarse_HRC = drawn_HRC - fine_HRC
    np.testing.assert_allclose(coarse_HRC.sum((1, 2)), weights_HQM[:, 3, 77:].sum(-1), atol=1e-5)
    assert recorded.pixel_maps((0.0, 0.0))[0][0].weights_HRC.shape == (4, 4, 6)  # type: ignore[union-attr]


def test_weights_of_points_give_the_output_of_the_layer(wide: Batch) -> None:
    recorded = record_pass(small_query_detector("deformable"), wide)
    attention, (x_BLE, places, cells_BTE, hidden_BT, shapes), _ = recorded.decoder[1]
    maps = [recorded.query_maps(q)[1] for q in range(7)]
    assert all(isinstance(one, PointMap) for one in maps)
    sampled = SamplingPoints(*(torch.tensor(np.stack([getattr(one, name) for one in maps]))[None]
                        for name in ("points_HVP2", "weights_HVP")))  # fmt: skip
    with torch.no_grad():
        values = attention.value(cells_BTE).unflatten(-1, (4, -1))
        again = attention.output(gather_points(values, shapes, sampled))
        torch.testing.assert_close(again, attention(x_BLE, places, cells_BTE, hidden_BT, shapes))


def test_padding_has_no_cells(wide: Batch) -> None:
    assert record_pass(small_query_detector("detr"), wide).map_shapes == [(4, 6)]
    assert record_pass(small_query_detector("deformable"), wide).map_shapes == [(8, 12), (4, 6)]


def test_the_query_that_attends_to_a_pixel_is_found() -> None:
    weights = np.zeros((1, 2, 2))
    weights[0, 1, 0] = 1
    cells, points = CellMap(weights), PointMap(np.array([[[[0.2, 0.9]]]]), np.ones((1, 1, 1)))
    for one in (cells, points):
        recorded = RecordedPass(np.zeros((1, 1, 1)), np.zeros((1, 1, 4)), ("cat",), [(2, 2)], [], [None])  # type: ignore[list-item]
        recorded._maps = lambda *_, one=one: [one]  # type: ignore[method-assign]
        assert recorded.attention_to((0.2, 0.9))[0] == pytest.approx(1)
        assert recorded.attention_to((0.8, 0.1))[0] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("point", "cell"), [((0, 0), 0), ((1, 1), 5), ((0.5, 0.49), 1), ((0.99, 0.51), 5)])
def test_a_point_lies_in_one_cell(point: tuple[float, float], cell: int) -> None:
    assert _cell(point, (2, 3)) == cell

import math

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from boxwright.models.layers.deformable_attention import DeformableAttention, SamplingPoints, gather_points

SHAPES = [(3, 5), (2, 4)]


def draw(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, SamplingPoints]:
    """Cells of two images with two heads, and points of which some are beyond the edges."""
    generator = torch.Generator().manual_seed(seed)
    cells = sum(height * width for height, width in SHAPES)
    values_BTHE = torch.randn(2, cells, 2, 3, generator=generator, dtype=dtype)
    places = torch.rand(2, 4, 2, 2, 3, 2, generator=generator, dtype=dtype) * 1.6 - 0.3
    weights = torch.rand(2, 4, 2, 2, 3, generator=generator, dtype=dtype)
    return values_BTHE, SamplingPoints(places, weights)


def one_by_one(values_BTHE: Tensor, points: SamplingPoints) -> Tensor:
    """The definition, cell by cell: a cell counts by its distance from the point, in both directions, within one."""
    images, queries, heads, levels, count, _ = points.locations_BQHVP2.shape
    found = torch.zeros(images, queries, heads, values_BTHE.shape[-1], dtype=values_BTHE.dtype)
    starts = [0, SHAPES[0][0] * SHAPES[0][1]]
    for b, q, h, v, p in torch.cartesian_prod(*(torch.arange(n) for n in (images, queries, heads, levels, count))):
        height, width = SHAPES[v]
        x, y = points.locations_BQHVP2[b, q, h, v, p] * torch.tensor([width, height]) - 0.5
        for row in range(height):
            for column in range(width):
                near = max(0, 1 - abs(x - column)) * max(0, 1 - abs(y - row))
                cell = starts[v] + row * width + column
                found[b, q, h] += points.weights_BQHVP[b, q, h, v, p] * near * values_BTHE[b, cell, h]
    return found.flatten(2)


def attention(width: int, places: int = 1) -> DeformableAttention:
    """One head that looks at just where it stands, and repeats what it sees."""
    layer = DeformableAttention(width, heads=1, levels=1, points=places)
    for name in ("offset", "weight"):
        nn.init.zeros_(getattr(layer, name).bias)
    for name in ("value", "output"):
        nn.init.eye_(getattr(layer, name).weight)
    return layer


def test_points_are_read_bilinearly_and_nothing_is_beyond_the_edges():
    values_BTHE, points = draw()
    torch.testing.assert_close(gather_points(values_BTHE, SHAPES, points), one_by_one(values_BTHE, points))


def test_gradients_are_those_of_finite_differences():
    values, (places, weights) = draw(1, torch.float64)
    inputs = [x[:1, :2].clone().requires_grad_() for x in (places, weights)]

    def found(values: Tensor, places: Tensor, weights: Tensor) -> Tensor:
        return gather_points(values, SHAPES, SamplingPoints(places, weights))

    assert torch.autograd.gradcheck(found, (values[:1].requires_grad_(), *inputs))


@pytest.mark.parametrize("autocast", [True, False])
def test_bf16_reads_the_right_cell_of_a_large_map(autocast):
    """Neighbours of 1000 cells have the same place in bf16: places must not be cut to it."""
    cells = 1000
    layer = attention(2)
    x_BTE = torch.stack([torch.arange(cells) % 2, 1 - torch.arange(cells) % 2], -1)[None].float()
    reference_BTV2 = torch.stack([(torch.arange(cells) + 0.5) / cells, torch.full((cells,), 0.5)], -1)[None, :, None]
    padding_BT = torch.zeros(1, cells, dtype=torch.bool)
    if not autocast:
        layer, x_BTE = layer.bfloat16(), x_BTE.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found_BTE = layer(torch.zeros_like(x_BTE), reference_BTV2, x_BTE, padding_BT, [(1, cells)])
    assert found_BTE.dtype == torch.bfloat16
    torch.testing.assert_close(found_BTE.float(), x_BTE.float(), atol=0.01, rtol=0)


def test_padding_holds_nothing():
    torch.manual_seed(0)
    layer = DeformableAttention(8, heads=2, levels=2, points=3)
    queries_BQE, places_BQV2, x_BTE = torch.randn(1, 4, 8), torch.rand(1, 4, 2, 2), torch.randn(1, 23, 8)
    padding_BT = torch.rand(1, 23) < 0.5
    clean = layer(queries_BQE, places_BQV2, x_BTE, padding_BT, SHAPES)
    spoilt = torch.where(padding_BT[..., None], 1e3, x_BTE)
    torch.testing.assert_close(layer(queries_BQE, places_BQV2, spoilt, padding_BT, SHAPES), clean)


def test_from_a_box_offsets_are_in_half_sizes_over_the_number_of_points():
    layer = DeformableAttention(8, heads=4, levels=1, points=2)
    boxes_BQV4 = torch.tensor([0.5, 0.4, 0.2, 0.4]).view(1, 1, 1, 4)
    places = layer.sampling_points(torch.zeros(1, 1, 8), boxes_BQV4, [(7, 9)]).locations_BQHVP2[0, 0, :, 0]
    torch.testing.assert_close(places[0], torch.tensor([[0.55, 0.4], [0.6, 0.4]]))  # to the right, up to the edge
    torch.testing.assert_close(places[1], torch.tensor([[0.5, 0.5], [0.5, 0.6]]))  # down


def test_from_a_point_offsets_are_in_cells():
    layer = DeformableAttention(8, heads=4, levels=1, points=2)
    points = layer.sampling_points(torch.zeros(1, 1, 8), torch.tensor([0.5, 0.4]).view(1, 1, 1, 2), [(5, 10)])
    torch.testing.assert_close(points.locations_BQHVP2[0, 0, 0, 0], torch.tensor([[0.6, 0.4], [0.7, 0.4]]))
    torch.testing.assert_close(points.locations_BQHVP2[0, 0, 1, 0], torch.tensor([[0.5, 0.6], [0.5, 0.8]]))
    assert torch.allclose(points.weights_BQHVP.sum((-1, -2)), torch.ones(()))


class Sampling(nn.Module):
    """The operator alone, as an exporter sees it."""

    def forward(self, values_BTHE: Tensor, places: Tensor, weights: Tensor) -> Tensor:
        """What is found."""
        return gather_points(values_BTHE, SHAPES, SamplingPoints(places, weights))


def test_operator_exports_to_core_operators():
    values_BTHE, points = draw()
    program = torch.export.export(Sampling().eval(), (values_BTHE, *points)).run_decompositions({})
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "aten.grid_sampler.default" in called  # GridSample of ONNX since opset 16
    torch.testing.assert_close(program.module()(values_BTHE, *points), gather_points(values_BTHE, SHAPES, points))


@pytest.mark.slow
def test_operator_exports_to_onnx(tmp_path):
    values_BTHE, points = draw()
    file = tmp_path / "points.onnx"
    torch.onnx.export(Sampling().eval(), (values_BTHE, *points), file, dynamo=True, opset_version=20, verbose=False)
    session = onnxruntime.InferenceSession(file)
    names = [given.name for given in session.get_inputs()]
    found = session.run(None, dict(zip(names, (x.numpy() for x in (values_BTHE, *points)), strict=True)))[0]
    torch.testing.assert_close(
        torch.from_numpy(found), gather_points(values_BTHE, SHAPES, points), atol=1e-5, rtol=1e-4
    )


def test_heads_begin_in_directions_of_their_own():
    layer = DeformableAttention(16, heads=8, levels=1, points=1)
    offsets_H2 = layer.offset.bias.view(8, 2)
    angles_H = torch.atan2(offsets_H2[:, 1], offsets_H2[:, 0])
    torch.testing.assert_close(angles_H % (2 * math.pi), torch.arange(8) * math.pi / 4, atol=1e-5, rtol=0)
    assert torch.allclose(offsets_H2.abs().amax(1), torch.ones(8))

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou, generalized_box_iou

from boxwright.boxes import area, clip, cxcywh_to_xyxy, giou, iou, to_canvas, to_pixels, xyxy_to_cxcywh

unit = st.floats(0, 1, width=32)


@st.composite
def box_lists(draw):
    rows = draw(st.lists(st.tuples(unit, unit, unit, unit), min_size=1, max_size=6))
    boxes = torch.tensor(rows)
    return torch.cat([torch.minimum(boxes[:, :2], boxes[:, 2:]), torch.maximum(boxes[:, :2], boxes[:, 2:])], -1)


@given(box_lists())
def test_formats_round_trip(boxes):
    torch.testing.assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes, atol=1e-6, rtol=0)


@given(box_lists(), box_lists())
def test_overlaps_equal_torchvision(a, b):
    pairs = a[:, None], b[None]
    ours, theirs = iou(*pairs), box_iou(a, b)
    real = (area(pairs[0]) + area(pairs[1])) > 1e-9  # torchvision divides nothing by nothing
    torch.testing.assert_close(ours[real], theirs[real], atol=1e-5, rtol=0)
    real = real & torch.isfinite(generalized_box_iou(a, b)) & (hull_area(*pairs) > 1e-9)
    torch.testing.assert_close(giou(*pairs)[real], generalized_box_iou(a, b)[real], atol=1e-5, rtol=0)


def hull_area(a, b):
    return (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)


@given(box_lists())
@settings(max_examples=30)
def test_a_box_overlaps_itself_whole_and_never_more(boxes):
    own = iou(boxes, boxes)
    assert ((own >= 0) & (own <= 1 + 1e-6)).all()
    solid = area(boxes) > 1e-6
    torch.testing.assert_close(own[solid], torch.ones_like(own[solid]))


def test_empty_boxes_have_finite_overlaps_and_gradients():
    boxes = torch.zeros(3, 4, requires_grad=True)
    total = (iou(boxes, boxes) + giou(boxes, boxes)).sum()
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(boxes.grad).all()


def test_clip_keeps_boxes_in_the_canvas():
    assert clip(torch.tensor([[-1.0, 0.2, 0.5, 3.0]])).tolist() == [[0.0, torch.tensor(0.2).item(), 0.5, 1.0]]


CANVAS, VALID, ORIGINAL = torch.tensor([64, 64]), torch.tensor([[48, 64], [0, 0]]), torch.tensor([[96, 128], [10, 20]])


def test_the_valid_area_of_the_canvas_is_the_whole_original():
    boxes_214 = torch.tensor([[[0.0, 0.0, 1.0, 0.75]], [[0.0, 0.0, 1.0, 1.0]]])
    pixels = to_pixels(boxes_214, CANVAS, VALID[:, None], ORIGINAL[:, None])
    assert pixels.tolist() == [[[0, 0, 128, 96]], [[0, 0, 20, 10]]]
    assert to_pixels(torch.tensor([-0.5, 0.0, 2.0, 9.0]), CANVAS, VALID[0], ORIGINAL[0]).tolist() == [0, 0, 128, 96]


@given(box_lists())
def test_pixels_go_back_to_the_canvas(boxes):
    inside = boxes * torch.tensor([1, 0.75, 1, 0.75])
    pixels = to_pixels(inside, CANVAS, VALID[0], ORIGINAL[0])
    torch.testing.assert_close(to_canvas(pixels, CANVAS, VALID[0], ORIGINAL[0]), inside, atol=1e-6, rtol=0)


def test_a_traced_graph_has_the_same_pixels():
    given = torch.rand(3, 5, 4), CANVAS, torch.tensor([37, 64]), torch.tensor([331, 571])

    class Pixels(torch.nn.Module):
        def forward(self, boxes, canvas, valid, original):
            return to_pixels(boxes, canvas, valid, original)

    traced = torch.export.export(Pixels(), given).module()
    assert torch.equal(traced(*given), to_pixels(*given))

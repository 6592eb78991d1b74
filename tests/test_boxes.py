import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou, generalized_box_iou

from boxwright.boxes import area, clip, cxcywh_to_xyxy, giou, iou, xyxy_to_cxcywh

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

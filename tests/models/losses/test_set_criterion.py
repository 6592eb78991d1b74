import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import generalized_box_iou

from boxwright.boxes import cxcywh_to_xyxy
from boxwright.models.detr import set_loss
from boxwright.models.layers.deformable_transformer import inverse_sigmoid
from boxwright.models.losses.focal import focal_cost
from boxwright.models.losses.set_criterion import (
    LayerPredictions,
    Targets,
    assign,
    focal_set_loss,
    gather_queries,
    scatter_to_queries,
)


def draw(
    layers: int, images: int, objects: int, queries: int, rows: int = 3, seed: int = 0
) -> tuple[LayerPredictions, Targets]:
    """What is said and what is true, drawn; of the last image the last object is padding."""
    generator = torch.Generator().manual_seed(seed)

    def boxes(*shape: int) -> Tensor:
        return torch.rand(*shape, 4, generator=generator) * 0.4 + 0.1

    logits = torch.randn(layers, images, queries, rows + 1, generator=generator, requires_grad=True)
    said = LayerPredictions(logits, boxes(layers, images, queries).requires_grad_())
    valid = torch.ones(images, objects, dtype=torch.bool)
    valid[-1, -1:] = False
    labels = torch.randint(rows, (images, objects), generator=generator)
    return said, Targets(boxes(images, objects), labels, valid, valid.sum().float().clamp(min=1))


def losses(kind: str, said: LayerPredictions, truth: Targets) -> tuple[dict[str, Tensor], Tensor]:
    return set_loss(said, truth) if kind == "softmax" else focal_set_loss(said, truth, aware=kind == "aware")


KINDS = ("softmax", "focal", "aware")


def one_by_one(said: LayerPredictions, truth: Targets, class_cost_LBQR: Tensor) -> Tensor:
    """The assignment as the originals do it: image by image, layer by layer, without padding."""
    matched = torch.full((len(said.boxes_LBQ4), *truth.valid_BN.shape), -1)
    for layer, image in torch.cartesian_prod(*(torch.arange(n) for n in said.boxes_LBQ4.shape[:2])):
        real = truth.valid_BN[image].nonzero()[:, 0]
        boxes, true = said.boxes_LBQ4[layer, image].detach(), truth.boxes_BN4[image, real]
        cost = class_cost_LBQR[layer, image][:, truth.rows_BN[image, real]] + 5 * torch.cdist(boxes, true, p=1)
        cost = cost - 2 * generalized_box_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(true))
        query, chosen = linear_sum_assignment(cost)
        matched[layer, image, real[chosen]] = torch.from_numpy(query)
    return matched


def test_batched_assignment_is_that_of_a_loop(monkeypatch):
    said, truth = draw(layers=3, images=4, objects=6, queries=20)
    cost = 2 * focal_cost(said.logits_LBQR.detach().sigmoid())
    expected = one_by_one(said, truth, cost)
    assert torch.equal(assign(said, truth, cost, torch.clone), expected)
    monkeypatch.setattr("boxwright.models.losses.set_criterion.MAX_COSTS", 100)  # in parts of one object
    assert torch.equal(assign(said, truth, cost, torch.clone), expected)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), objects=st.integers(1, 6))
def test_order_and_padding_of_objects_change_nothing(kind, seed, objects):
    said, truth = draw(2, 2, objects, 9, seed=seed)
    order = torch.randperm(objects + 2, generator=torch.Generator().manual_seed(seed))
    longer = (torch.nn.functional.pad(x, (0,) * 2 * (x.ndim - 2) + (0, 2))[:, order] for x in truth[:3])
    terms, _ = losses(kind, said, truth)
    others, _ = losses(kind, said, Targets(*longer, truth.count))
    torch.testing.assert_close(terms, others)


@pytest.mark.parametrize("kind", KINDS)
def test_who_says_the_truth_pays_next_to_nothing(kind):
    said, truth = draw(2, 2, 4, 7)
    boxes = said.boxes_LBQ4.detach().clone()
    boxes[:, :, :4] = truth.boxes_BN4
    wanted = scatter_to_queries(truth.rows_BN, torch.arange(4).expand(2, 2, 4).where(truth.valid_BN, -1), 7, 3)
    logits = torch.nn.functional.one_hot(wanted, 4).float() * 60 - 30
    if kind != "softmax":
        logits = logits[..., :3]
    terms, matched = losses(kind, LayerPredictions(logits, boxes), truth)
    assert torch.equal(matched[:, truth.valid_BN], torch.arange(4).expand(2, 2, 4)[:, truth.valid_BN])
    for value in terms.values():
        torch.testing.assert_close(value, torch.zeros(2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_without_objects_only_the_class_is_taught(kind):
    said, truth = draw(2, 2, 1, 7)
    empty = truth._replace(valid_BN=torch.zeros(2, 1, dtype=torch.bool), count=torch.ones(()))
    terms, matched = losses(kind, said, empty)
    assert (matched == -1).all()
    assert (terms["l1"] == 0).all()
    assert (terms["giou"] == 0).all()
    sum(value.sum() for value in terms.values()).backward()
    assert (terms["class"] > 0).all()
    assert said.boxes_LBQ4.grad.abs().max() == 0
    assert said.logits_LBQR.grad.abs().amin((0, 1, 2)).min() >= 0
    assert said.logits_LBQR.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_without_size_are_harmless(kind):
    said, truth = draw(2, 2, 4, 7)
    truth.boxes_BN4[0, 0, 2:] = 0
    truth.boxes_BN4[1, 1, 2] = 0
    with torch.no_grad():
        said.boxes_LBQ4[:, 0, 0] = truth.boxes_BN4[0, 0]  # both at the same place, both without size
        said.boxes_LBQ4[:, 1, :, 2:] = 0
    terms, _ = losses(kind, said, truth)
    sum(value.sum() for value in terms.values()).backward()
    assert all(value.isfinite().all() for value in terms.values())
    assert said.boxes_LBQ4.grad.isfinite().all()
    assert said.logits_LBQR.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_more_objects_than_queries_teach_as_many_as_fit_and_it_is_said_once(kind):
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("default")
        for objects, queries in ((9, 5), (12, 5), (12, 6)):
            said, truth = draw(2, 3, objects, queries)
            terms, matched = losses(kind, said, truth)
            assert ((matched >= 0).sum(2) == queries).all()
            assert all(value.isfinite().all() for value in terms.values())
    assert len(heard) == 1
    assert "more objects than queries" in str(heard[0].message)


def test_padding_rows_alone_are_not_too_many_objects():
    said, truth = draw(1, 2, 9, 5)
    truth.valid_BN[:, 5:] = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        set_loss(said, truth)


@pytest.mark.parametrize("kind", KINDS)
def test_each_layer_is_judged_for_itself(kind):
    said, truth = draw(3, 2, 4, 7)
    terms, _ = losses(kind, said, truth)
    for layer in range(3):
        alone, _ = losses(kind, LayerPredictions(*(x[layer : layer + 1] for x in said)), truth)
        for name, values in terms.items():
            torch.testing.assert_close(alone[name][0], values[layer])


def test_giving_and_picking_are_each_others_inverse():
    matched_LBN = torch.tensor([[[3, -1, 0], [2, 1, -1]]])
    values_LBN = torch.tensor([[[5.0, 6.0, 7.0], [8.0, 9.0, 10.0]]])
    given_LBQ = scatter_to_queries(values_LBN, matched_LBN, 5, -1.0)
    assert given_LBQ.tolist() == [[[7, -1, -1, 5, -1], [-1, 9, 8, -1, -1]]]
    real = matched_LBN >= 0
    assert torch.equal(gather_queries(given_LBQ[..., None], matched_LBN)[..., 0][real], values_LBN[real])


def test_inverse_of_the_sigmoid_is_finite_at_both_ends():
    ends = torch.tensor([-0.5, 0.0, 0.3, 1.0, 1.5], requires_grad=True)
    inverse_sigmoid(ends).sum().backward()
    assert inverse_sigmoid(ends).isfinite().all()
    assert ends.grad.isfinite().all()
    torch.testing.assert_close(inverse_sigmoid(ends)[2].sigmoid(), ends[2])

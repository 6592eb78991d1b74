import torch

from boxwright.boxes import cxcywh_to_xyxy, iou
from boxwright.models.layers.deformable_transformer import Queries
from boxwright.models.losses.denoising import (
    DENOISING_QUERIES,
    DenoisingQueries,
    denoising_loss,
    make_denoising_queries,
)
from boxwright.models.losses.set_criterion import LayerPredictions, Targets


def truth(images: int = 2, objects: int = 3) -> Targets:
    """Objects away from the edges; the last one of the last image is padding."""
    generator = torch.Generator().manual_seed(0)
    boxes_BN4 = torch.rand(images, objects, 4, generator=generator) * 0.2 + 0.35
    valid_BN = torch.ones(images, objects, dtype=torch.bool)
    valid_BN[-1, -1] = False
    labels_BN = torch.arange(images * objects).view(images, objects) % 4
    return Targets(boxes_BN4, labels_BN, valid_BN, valid_BN.sum().float())


def test_as_many_groups_as_there_is_room_for_and_at_least_one():
    assert make_denoising_queries(truth(objects=3), torch.randn(4, 8)).groups == DENOISING_QUERIES // 6
    crowd = make_denoising_queries(truth(objects=500), torch.randn(4, 8))
    assert crowd.groups == 1
    assert crowd.count == 1000


def test_the_first_half_of_a_group_is_nearer_to_its_objects_than_the_second():
    torch.manual_seed(0)
    true = truth(objects=2)
    shaken = make_denoising_queries(true, torch.randn(4, 8))
    boxes = cxcywh_to_xyxy(shaken.boxes_BD4).unflatten(1, (shaken.groups, 2, 2))
    overlap = iou(boxes, cxcywh_to_xyxy(true.boxes_BN4)[:, None, None])
    assert (overlap[:, :, 0] > 0).all()
    assert overlap[:, :, 0].mean() > 1.5 * overlap[:, :, 1].mean()
    assert (boxes >= 0).all()
    assert (boxes <= 1).all()
    assert (boxes[..., 2:] >= boxes[..., :2]).all()


def test_most_begin_with_their_own_class():
    torch.manual_seed(0)
    codes = torch.randn(4, 8)
    shaken = make_denoising_queries(truth(objects=2), codes)
    own = codes[truth(objects=2).rows_BN].repeat(1, 2 * shaken.groups, 1)
    share = (shaken.contents_BDE == own).all(-1)[shaken.real_BD].float().mean()
    assert 0.7 < share < 0.95  # a quarter is drawn anew, and a quarter of these come to the same
    assert (shaken.contents_BDE[~shaken.real_BD] == 0).all()


def test_groups_see_themselves_and_the_matched_queries_see_no_truth():
    shaken = make_denoising_queries(truth(), torch.randn(4, 8))
    queries = shaken.prepended_to(Queries(torch.zeros(2, 5, 8), torch.rand(2, 5, 4), None))
    assert queries.allowed_BQQ is not None
    count, group = shaken.count, 6
    assert queries.contents_BQE.shape[1] == queries.boxes_BQX.shape[1] == count + 5
    assert not queries.allowed_BQQ[:, count:, :count].any()
    assert queries.allowed_BQQ[:, count:, count:].all()
    first = queries.allowed_BQQ[0, :group]
    assert first[:, :group].all()
    assert not first[:, group:count].any()
    assert first[:, count:].all()
    padded = queries.allowed_BQQ[1]  # its third object is padding: nothing but itself looks at it
    assert padded[:, 2].sum() == 1
    assert padded[2, 2]


def test_what_was_put_side_by_side_is_split_again():
    shaken = make_denoising_queries(truth(), torch.randn(4, 8))
    said = LayerPredictions(torch.randn(2, 2, shaken.count + 5, 4), torch.rand(2, 2, shaken.count + 5, 4))
    noisy, matched = shaken.split(said)
    assert torch.equal(torch.cat([noisy.logits_LBQR, matched.logits_LBQR], 2), said.logits_LBQR)
    assert noisy.boxes_LBQ4.shape[2] == shaken.count


def test_loss_of_what_is_right_is_small_and_padding_learns_nothing():
    true = truth()
    shaken = make_denoising_queries(true, torch.randn(4, 8))
    boxes = true.boxes_BN4.repeat(1, 2 * shaken.groups, 1).expand(2, -1, -1, -1)
    positive = torch.arange(shaken.count) % 6 < 3
    rows = torch.where(positive, true.rows_BN.repeat(1, 2 * shaken.groups), 4)
    logits = (torch.nn.functional.one_hot(rows, 5)[..., :4].float() * 40 - 20).expand(3, -1, -1, -1)
    logits = logits.clone().requires_grad_()
    for aware in (True, False):
        right = denoising_loss(LayerPredictions(logits, boxes[:1].expand(3, -1, -1, -1)), shaken, true, aware)
        for value in right.values():
            torch.testing.assert_close(value, torch.zeros(3), atol=1e-5, rtol=0)
    wrong = denoising_loss(LayerPredictions(-logits, boxes[:1].expand(3, -1, -1, -1)), shaken, true, True)
    wrong["class"].sum().backward()
    assert wrong["class"].min() > 1
    assert logits.grad[:, ~shaken.real_BD].abs().max() == 0
    assert logits.grad[:, shaken.real_BD].abs().sum(-1).min() > 0


def test_number_of_groups_does_not_change_the_scale_of_the_loss():
    true = truth()
    one, many = (make_denoising_queries(t, torch.randn(4, 8)) for t in (true, true))
    said = LayerPredictions(torch.zeros(1, 2, many.count, 4), many.boxes_BD4[None])
    half = many.count // many.groups
    alone = DenoisingQueries(
        *(x[:, :half] for x in (one.contents_BDE, one.rows_BD, one.boxes_BD4, one.real_BD)), groups=1
    )
    few = denoising_loss(
        LayerPredictions(said.logits_LBQR[:, :, :half], said.boxes_LBQ4[:, :, :half]), alone, true, False
    )
    torch.testing.assert_close(few["class"], denoising_loss(said, many, true, False)["class"])

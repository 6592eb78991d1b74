from dataclasses import replace

import pytest
import torch

from boxwright.config import UserError
from boxwright.models import registry
from boxwright.models.deformable import PUBLISHED, Deformable
from boxwright.models.dense import SIZES as DENSE_SIZES
from boxwright.models.dense import Dense
from boxwright.models.detr import Detr, DetrConfig
from boxwright.models.pix2seq import SIZES, Pix2Seq, Pix2SeqConfig

SMALL = Pix2SeqConfig(
    image_size=64, encoder_layers=1, decoder_layers=1, encoder_dim=32, decoder_dim=32, encoder_hidden=64,
    decoder_hidden=64, encoder_heads=2, decoder_heads=2, max_objects=4, length=20, bins=20, first_coordinate=110,
    vocabulary=140,
)  # fmt: skip


def images():
    return torch.rand(1, 3, 64, 64), torch.tensor([[64, 64]])


@torch.no_grad()
def test_dense_scores_known_classes_as_before_whatever_their_order():
    torch.manual_seed(0)
    source = Dense(replace(DENSE_SIZES["nano"], image_size=64), ("cat", "dog", "cow"), pretrained=False).eval()
    torch.nn.init.normal_(source.rivals.leave.weight)
    target = source.with_classes(("cow", "emu", "cat"), pretrained=False).eval()
    before, after = source(*images()), target(*images())
    assert after.many_BQK.shape[-1] == 3
    for name in ("cow", "cat"):
        old, new = source.names.index(name), target.names.index(name)
        assert torch.equal(source.rivals.leave.weight[old], target.rivals.leave.weight[new])
        column = source.config.channels
        assert torch.equal(source.rivals.enter.weight[:, column + old], target.rivals.enter.weight[:, column + new])
        assert torch.equal(source.head.many.bias[old], target.head.many.bias[new])
    assert torch.equal(source.rivals.enter.weight[:, -5:], target.rivals.enter.weight[:, -5:])
    assert before.boxes_BQ4.shape == after.boxes_BQ4.shape


@torch.no_grad()
def test_a_pix2seq_keeps_the_ids_of_the_classes_it_knows():
    source = Pix2Seq(replace(SMALL, class_ids=(1, 3, 9)), ("cat", "dog", "cow"), pretrained=False).eval()
    target = source.with_classes(("cow", "emu", "cat"), image_size=96, pretrained=False).eval()
    assert target.config.class_ids == (9, 2, 1)
    assert target.image_size == 96
    inputs = images()
    assert torch.equal(source(*inputs), target(*inputs))


def test_other_classes_need_no_imagenet_weights_but_freeze_as_if_they_were_loaded():
    config = replace(SMALL, backbone="resnet18", stride=32)  # its weights do not come with the installation
    target = Pix2Seq(config, ("cat",), pretrained=False).with_classes(("cat", "dog"))
    assert not target.backbone.net.conv1.weight.requires_grad


def test_a_size_is_recognised_by_the_shape_of_its_network():
    published = replace(SIZES["nano"], image_size=64, max_objects=4, class_ids=(1, 7))
    assert registry.is_size("pix2seq", published, "nano")
    assert not registry.is_size("pix2seq", published, "small")


def test_ids_of_lost_classes_are_used_when_no_other_is_left():
    source = Pix2Seq(SMALL, tuple("abcdefgh"), pretrained=False)
    assert source.with_classes(tuple("hgxyz1234"), pretrained=False).config.class_ids == (8, 7, 9, 1, 2, 3, 4, 5, 6)
    with pytest.raises(UserError, match="tokens for 9 classes, not for 10"):
        source.with_classes(tuple("0123456789"), pretrained=False)


TINY = {
    "backbone": "resnet18",
    "image_size": 64,
    "dim": 64,
    "hidden": 48,
    "heads": 4,
    "queries": 6,
    "decoder_layers": 2,
}


@torch.no_grad()
@pytest.mark.parametrize("rows", [{}, {"class_rows": 9, "class_ids": (1, 3, 8)}])
def test_a_detr_keeps_the_rows_of_the_classes_it_knows_and_of_no_object(rows):
    source = Detr(DetrConfig(**TINY, encoder_layers=1, **rows), ("cat", "dog", "cow"), pretrained=False).eval()
    target = source.with_classes(("cow", "emu", "cat"), pretrained=False).eval()
    assert (target.config.class_rows, target.config.class_ids) == (0, ())
    inputs = images()
    before, after = source(*inputs).layers, target(*inputs).layers
    assert torch.equal(before.boxes_LBQ4, after.boxes_LBQ4)
    old = [source.rows_K[2], source.rows_K[0], -1]
    torch.testing.assert_close(before.logits_LBQR[..., old], after.logits_LBQR[..., [0, 2, 3]])
    assert after.logits_LBQR.shape[-1] == 4


@torch.no_grad()
@pytest.mark.parametrize("begin", ["table", "proposals", "both"])
def test_a_deformable_keeps_its_rows_and_what_ranks_its_proposals(begin):
    config = replace(PUBLISHED, **TINY, encoder_layers=1, begin=begin, refine=True, noisy=begin == "both", class_rows=9)
    source = Deformable(replace(config, class_ids=(1, 3, 8)), ("cat", "dog", "cow"), pretrained=False).eval()
    for classify in source.classify:
        torch.nn.init.normal_(classify.bias)
    target = source.with_classes(("emu", "cow"), image_size=96, pretrained=False).eval()
    assert target.image_size == 96
    inputs = images()
    outputs, new_outputs = source(*inputs), target(*inputs)
    if begin != "both":  # with both, all classes of either rank the proposals
        before = outputs.layers
        after = new_outputs.layers
        torch.testing.assert_close(before.boxes_LBQ4, after.boxes_LBQ4)
        torch.testing.assert_close(before.logits_LBQR[..., 8], after.logits_LBQR[..., 1])
    else:
        assert torch.equal(source.label_embedding[8], target.label_embedding[1])
        torch.testing.assert_close(outputs.proposals.logits_BTR[..., 8], new_outputs.proposals.logits_BTR[..., 1])


def test_norms_and_stem_are_frozen():
    source = Detr(DetrConfig(**TINY, encoder_layers=1), ("cat",), pretrained=False)
    assert not source.with_classes(("cat", "dog")).backbone.net.conv1.weight.requires_grad
    assert source.with_classes(("cat", "dog"), pretrained=False).backbone.net.conv1.weight.requires_grad

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from boxwright.config import UserError
from boxwright.models.backbones.frozen_resnet import FrozenResNet
from boxwright.models.layers.kv_cache import KeysValues
from boxwright.models.layers.post_norm import sine_2d
from boxwright.models.replication import EncoderMemory, ReplicationOutputs, with_noise
from boxwright.types import image_mask
from helpers.small_replication import VARIANTS, small_replication


@pytest.mark.parametrize("variant", VARIANTS)
def test_generated_tokens_are_the_most_probable_of_whole_sequences(batch, variant):
    detector = small_replication(variant)
    with torch.no_grad():
        outputs = detector(batch.images_BCHW, batch.sizes_B2)
        generated = detector.generate(outputs)
        inputs_BL = nn.functional.pad(generated.tokens_BL[:, :-1], (1, 0), value=detector.config.start)
        logits_BLV = detector.decoder(inputs_BL, outputs.memory)
    allowed_LV = detector.token_constraints().allowed_PV
    assert torch.equal(logits_BLV.masked_fill(~allowed_LV, -torch.inf).argmax(-1), generated.tokens_BL)
    log_probs_BL = logits_BLV.log_softmax(-1).gather(-1, generated.tokens_BL[..., None])[..., 0]
    torch.testing.assert_close(log_probs_BL, generated.log_probs_BL, rtol=0, atol=1e-5)


def test_each_variant_has_its_own_constraints():
    rules = {variant: small_replication(variant).token_constraints().allowed_PV.sum(1).tolist() for variant in VARIANTS}
    assert set(rules["pretrained"]) == set(rules["mmdet"]) == {2092}
    assert rules["stable"] == [1000, 1000, 1000, 1000, 1997] * 5
    assert rules["unofficial"] == [1000] * 4 + [2003] * 21


@pytest.mark.parametrize("variant", ["stable", "unofficial"])
def test_padding_is_never_attended_to(batch, variant):
    detector, images_BCHW = small_replication(variant), batch.images_BCHW.float()
    outside_BHW = ~image_mask(images_BCHW, batch.sizes_B2)
    noisy_BCHW = images_BCHW + outside_BHW[:, None] * torch.rand_like(images_BCHW)
    with torch.no_grad():
        one, other = (detector(images, batch.sizes_B2).memory for images in (images_BCHW, noisy_BCHW))
        assert torch.equal(one.keys_BME, other.keys_BME)
        hidden = one._replace(values_BME=one.values_BME + 9 * ~one.valid_BM[..., None])
        tokens = torch.full((2, 3), detector.config.start)
        assert torch.equal(detector.decoder(tokens, one), detector.decoder(tokens, hidden))
    assert not one.valid_BM.all()


def test_the_canvas_beyond_the_largest_image_changes_nothing():
    detector = small_replication("pretrained")
    images_BCHW, sizes_B2 = torch.rand(1, 3, 96, 96), torch.tensor([[64, 96]])
    wide_BCHW = nn.functional.pad(images_BCHW, (0, 96, 0, 96))
    with torch.no_grad():
        one, other = (detector.decode(detector(images, sizes_B2)) for images in (images_BCHW, wide_BCHW))
    assert torch.equal(one.scores_BD, other.scores_BD)
    torch.testing.assert_close(one.boxes_BD4, 2 * other.boxes_BD4)


def outputs_of(sizes, canvas):
    return ReplicationOutputs(EncoderMemory(*torch.zeros(3, 1)), torch.tensor(sizes), canvas)


@pytest.mark.parametrize("variant", VARIANTS)
def test_boxes_come_back_within_a_bin(variant):
    detector = small_replication(variant)
    vocabulary = detector.vocabulary(outputs_of([[400, 512], [512, 300]], (512, 512)))
    boxes_BM4 = torch.tensor([[0.1, 0.2, 0.5, 0.7], [0, 0, 0.58, 0.78]]).repeat(2, 1, 1)
    tokens_BM5 = vocabulary.object_tokens(boxes_BM4, torch.tensor([[0, 1], [1, 0]]))
    assert (tokens_BM5[..., 4] - detector.config.first_class).tolist() == [[0, 1], [1, 0]]
    torch.testing.assert_close(vocabulary.boxes(tokens_BM5[..., :4]), boxes_BM4, rtol=0, atol=1.6 / 999)


def test_a_reversed_box_is_empty():
    vocabulary = small_replication("mmdet").vocabulary(outputs_of([[64, 64]], (64, 64)))
    box_4 = vocabulary.boxes(torch.tensor([[[30, 20, 10, 50]]]))[0, 0]
    assert box_4[2] == box_4[0]
    assert box_4[3] > box_4[1]


def test_target_tokens_of_each_variant():
    tokens_BM5, real_BM = torch.arange(25).view(1, 5, 5), torch.tensor([[True, True, False, False, False]])
    targets = {
        variant: small_replication(variant).target_tokens(tokens_BM5, real_BM)[0].tolist() for variant in VARIANTS
    }
    objects = list(range(10))
    assert targets["pretrained"] == [*objects, *[2092, -100, -100, -100, 2093] * 3, 2092]
    assert targets["mmdet"] == [*objects, *[-100, -100, -100, -100, 2093] * 3]
    assert targets["stable"] == [*objects, *[2000, -100, -100, -100, 1998] * 3, 2000]
    assert targets["unofficial"] == [*objects, 2000, *[-100] * 15]
    full = small_replication("unofficial").target_tokens(tokens_BM5, torch.ones(1, 5, dtype=torch.bool))
    assert full[0].tolist() == [*range(25), 2000]


@pytest.mark.parametrize("variant", VARIANTS)
def test_everything_learns_even_without_objects(batch, variant):
    detector = small_replication(variant).train()
    empty = replace(batch, valid_BN=torch.zeros_like(batch.valid_BN))
    for each in (empty, batch):
        losses = detector.loss(detector(each.images_BCHW, each.sizes_B2, each), each)
        assert losses["tokens"].isfinite()
    losses["tokens"].backward()
    still = [name for name, p in detector.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert still == []


def test_noise_leaves_real_objects_alone_and_stays_in_the_image():
    torch.manual_seed(0)
    boxes_BM4 = torch.tensor([[[0.2, 0.2, 0.6, 0.4]] + [[0.0] * 4] * 199])
    labels_BM, real_BM = torch.ones(1, 200, dtype=torch.int64), torch.arange(200)[None] < 1
    noisy_BM4, noisy_labels_BM = with_noise(boxes_BM4, labels_BM, real_BM, 7)
    assert torch.equal(noisy_BM4[:, 0], boxes_BM4[:, 0])
    assert noisy_BM4.min() >= 0
    assert noisy_BM4.max() <= 1
    near = ((noisy_BM4 - boxes_BM4[:, :1]).abs() <= torch.tensor([0.08, 0.04, 0.08, 0.04]) + 1e-6).all(-1)
    assert 70 < near.sum() < 130
    assert set(noisy_labels_BM.flatten().tolist()) == set(range(7))


def test_only_named_classes_are_detected(batch):
    detector = small_replication("pretrained", ("person", "cat"), class_ids=(1, 17))
    with torch.no_grad():
        detector.decoder.head[0].bias[[2018, 2030]] += torch.tensor([20.0, 50.0])  # a cat, and a number nobody has
        predictions = detector.decode(detector(batch.images_BCHW, batch.sizes_B2))
    assert set(predictions.labels_BD.flatten().tolist()) == {1}
    assert predictions.scores_BD.max() < 1e-9
    with pytest.raises(UserError, match="91 classes, not for 2"):
        small_replication("pretrained", ("person", "cat"), class_ids=(1, 91))


def test_tokens_that_are_no_coordinates_do_not_make_boxes(batch):
    detector = small_replication("pretrained")
    with torch.no_grad():
        detector.decoder.head[0].bias[2050] += 50
        detector.decoder.head[0].bias[700] += 20
        predictions = detector.decode(detector(batch.images_BCHW, batch.sizes_B2))
    torch.testing.assert_close(predictions.boxes_BD4[0, 0], torch.full((4,), 700 * 1333 / 2000 / 96))


def test_behind_the_end_there_is_nothing(batch):
    detector = small_replication("unofficial")
    with torch.no_grad():
        detector.decoder.head[-1].bias[2000] += 50
        predictions = detector.decode(detector(batch.images_BCHW, batch.sizes_B2))
    assert predictions.scores_BD.max() == 0


def test_positions_count_valid_cells():
    seen_BHW = torch.tensor([[[1, 1, 0], [1, 1, 0]]]).bool()
    codes_HWE = sine_2d(seen_BHW, 8, normalised=False).view(2, 3, 8)
    assert codes_HWE[1, 0, 0].item() == pytest.approx(math.sin(2), abs=1e-6)
    torch.testing.assert_close(codes_HWE[0, 1, 4:], codes_HWE[0, 2, 4:])  # padding does not count on
    spread = sine_2d(seen_BHW, 8, normalised=True).view(2, 3, 8)
    torch.testing.assert_close(spread[0, 1, 4:6], torch.tensor([0.0, 1.0]), rtol=0, atol=1e-5)  # 2 pi at the end


def test_several_sequences_share_their_image():
    decoder = small_replication("stable").decoder
    memory = EncoderMemory(torch.rand(2, 6, 32), torch.rand(2, 6, 32), torch.rand(2, 6) > 0.3)
    cache = decoder.start(memory, 8, per_image=3)
    assert isinstance(cache.image[0], KeysValues)
    tokens = torch.randint(0, 1000, (6, 1))
    with torch.no_grad():
        scores = decoder.step(tokens, torch.tensor([0]), cache)
        alone = decoder(tokens, EncoderMemory(*(part.repeat_interleave(3, 0) for part in memory)))[:, 0]
    torch.testing.assert_close(scores, alone, rtol=0, atol=1e-5)


def test_the_norms_of_the_backbone_never_change():
    with torch.device("meta"):
        network = FrozenResNet("resnet50").train()
    names = [name for name, _ in network.named_parameters()]
    assert len(names) == 53
    assert all("conv" in name or name.endswith("downsample.0.weight") for name in names)
    with pytest.raises(UserError, match="resnet18"):
        FrozenResNet("resnet18")


@pytest.mark.parametrize("variant", VARIANTS)
def test_likelihood_counts_the_tokens_of_real_objects_and_rises_while_they_are_learned(batch, variant):
    detector = small_replication(variant)
    with torch.no_grad():
        outputs = detector(batch.images_BCHW, batch.sizes_B2)
        before, counts = detector.likelihood(outputs, batch)
    assert counts.tolist() == [15, 5]
    assert (before < -math.log(100) * counts).all()
    optimizer = torch.optim.AdamW(detector.decoder.parameters(), 3e-3)
    for _ in range(20):
        detector.loss(outputs, batch)["tokens"].backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        after, _ = detector.likelihood(outputs, batch)
    assert (after > before).all()

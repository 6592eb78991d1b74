import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from boxwright.config import UserError
from boxwright.interop.replications import PUBLISHED
from boxwright.models import replication
from boxwright.models.backbones.frozen_resnet import FrozenResNet
from boxwright.models.backbones.pix2seq_stems import Patches
from boxwright.models.layers.kv_cache import KeysValues
from boxwright.models.layers.post_norm import sine_2d
from boxwright.models.replication import EncoderMemory, Replication, ReplicationOutputs, with_noise
from boxwright.types import image_mask

SMALL = {
    "encoder_layers": 2,
    "decoder_layers": 2,
    "dim": 32,
    "hidden": 48,
    "heads": 4,
    "dropout": 0.0,
    "max_objects": 5,
}
VARIANTS = list(PUBLISHED)


@pytest.fixture
def make(monkeypatch):
    """A detector of a variant with a tiny transformer behind a tiny stem."""
    monkeypatch.setattr(replication, "FrozenResNet", lambda name: Patches(32, 2048))

    def build(variant, names=("cat", "dog"), **changes):
        torch.manual_seed(0)
        return Replication(replace(PUBLISHED[variant], **SMALL, **changes), names).eval()

    return build


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_written_is_what_whole_sentences_say(make, batch, variant):
    detector = make(variant)
    with torch.no_grad():
        raw = detector(batch.images_BCHW, batch.sizes_B2)
        said = detector.generate(raw)
        begun_BL = nn.functional.pad(said.tokens_BL[:, :-1], (1, 0), value=detector.config.start)
        scores_BLV = detector.decoder(begun_BL, raw.memory)
    allowed_LV = detector.token_constraints().allowed_PV
    assert torch.equal(scores_BLV.masked_fill(~allowed_LV, -torch.inf).argmax(-1), said.tokens_BL)
    log_probs_BL = scores_BLV.log_softmax(-1).gather(-1, said.tokens_BL[..., None])[..., 0]
    torch.testing.assert_close(log_probs_BL, said.log_probs_BL, rtol=0, atol=1e-5)


def test_each_variant_has_its_own_rule(make):
    rules = {variant: make(variant).token_constraints().allowed_PV.sum(1).tolist() for variant in VARIANTS}
    assert set(rules["pretrained"]) == set(rules["mmdet"]) == {2092}
    assert rules["stable"] == [1000, 1000, 1000, 1000, 1997] * 5
    assert rules["unofficial"] == [1000] * 4 + [2003] * 21


@pytest.mark.parametrize("variant", ["stable", "unofficial"])
def test_padding_is_never_looked_at(make, batch, variant):
    detector, images_BCHW = make(variant), batch.images_BCHW.float()
    outside_BHW = ~image_mask(images_BCHW, batch.sizes_B2)
    noisy_BCHW = images_BCHW + outside_BHW[:, None] * torch.rand_like(images_BCHW)
    with torch.no_grad():
        one, other = (detector(images, batch.sizes_B2).memory for images in (images_BCHW, noisy_BCHW))
        assert torch.equal(one.keys_BME, other.keys_BME)
        hidden = one._replace(values_BME=one.values_BME + 9 * ~one.valid_BM[..., None])
        tokens = torch.full((2, 3), detector.config.start)
        assert torch.equal(detector.decoder(tokens, one), detector.decoder(tokens, hidden))
    assert not one.valid_BM.all()


def test_the_canvas_beyond_the_largest_image_changes_nothing(make):
    detector = make("pretrained")
    images_BCHW, sizes_B2 = torch.rand(1, 3, 96, 96), torch.tensor([[64, 96]])
    wide_BCHW = nn.functional.pad(images_BCHW, (0, 96, 0, 96))
    with torch.no_grad():
        one, other = (detector.decode(detector(images, sizes_B2)) for images in (images_BCHW, wide_BCHW))
    assert torch.equal(one.scores_BD, other.scores_BD)
    torch.testing.assert_close(one.boxes_BD4, 2 * other.boxes_BD4)


def raw_of(sizes, canvas):
    return ReplicationOutputs(EncoderMemory(*torch.zeros(3, 1)), torch.tensor(sizes), canvas)


@pytest.mark.parametrize("variant", VARIANTS)
def test_boxes_come_back_within_a_bin(make, variant):
    detector = make(variant)
    vocabulary = detector.vocabulary(raw_of([[400, 512], [512, 300]], (512, 512)))
    boxes_BM4 = torch.tensor([[0.1, 0.2, 0.5, 0.7], [0, 0, 0.58, 0.78]]).repeat(2, 1, 1)
    words_BM5 = vocabulary.object_tokens(boxes_BM4, torch.tensor([[0, 1], [1, 0]]))
    assert (words_BM5[..., 4] - detector.config.first_class).tolist() == [[0, 1], [1, 0]]
    torch.testing.assert_close(vocabulary.boxes(words_BM5[..., :4]), boxes_BM4, rtol=0, atol=1.6 / 999)


def test_a_reversed_box_is_empty(make):
    vocabulary = make("mmdet").vocabulary(raw_of([[64, 64]], (64, 64)))
    box_4 = vocabulary.boxes(torch.tensor([[[30, 20, 10, 50]]]))[0, 0]
    assert box_4[2] == box_4[0]
    assert box_4[3] > box_4[1]


def test_what_should_be_said(make):
    words_BM5, real_BM = torch.arange(25).view(1, 5, 5), torch.tensor([[True, True, False, False, False]])
    said = {variant: make(variant).target_tokens(words_BM5, real_BM)[0].tolist() for variant in VARIANTS}
    begun = list(range(10))
    assert said["pretrained"] == [*begun, *[2092, -100, -100, -100, 2093] * 3, 2092]
    assert said["mmdet"] == [*begun, *[-100, -100, -100, -100, 2093] * 3]
    assert said["stable"] == [*begun, *[2000, -100, -100, -100, 1998] * 3, 2000]
    assert said["unofficial"] == [*begun, 2000, *[-100] * 15]
    full = make("unofficial").target_tokens(words_BM5, torch.ones(1, 5, dtype=torch.bool))
    assert full[0].tolist() == [*range(25), 2000]


@pytest.mark.parametrize("variant", VARIANTS)
def test_everything_learns_even_without_objects(make, batch, variant):
    detector = make(variant).train()
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


def test_only_named_classes_are_detected(make, batch):
    detector = make("pretrained", ("person", "cat"), class_ids=(1, 17))
    with torch.no_grad():
        detector.decoder.head[0].bias[[2018, 2030]] += torch.tensor([20.0, 50.0])  # a cat, and a number nobody has
        said = detector.decode(detector(batch.images_BCHW, batch.sizes_B2))
    assert set(said.labels_BD.flatten().tolist()) == {1}
    assert said.scores_BD.max() < 1e-9
    with pytest.raises(UserError, match="91 classes, not for 2"):
        make("pretrained", ("person", "cat"), class_ids=(1, 91))


def test_words_that_are_no_coordinates_do_not_make_boxes(make, batch):
    detector = make("pretrained")
    with torch.no_grad():
        detector.decoder.head[0].bias[2050] += 50
        detector.decoder.head[0].bias[700] += 20
        said = detector.decode(detector(batch.images_BCHW, batch.sizes_B2))
    torch.testing.assert_close(said.boxes_BD4[0, 0], torch.full((4,), 700 * 1333 / 2000 / 96))


def test_behind_the_end_there_is_nothing(make, batch):
    detector = make("unofficial")
    with torch.no_grad():
        detector.decoder.head[-1].bias[2000] += 50
        said = detector.decode(detector(batch.images_BCHW, batch.sizes_B2))
    assert said.scores_BD.max() == 0


def test_cells_are_counted_where_they_are_seen():
    seen_BHW = torch.tensor([[[1, 1, 0], [1, 1, 0]]]).bool()
    codes_HWE = sine_2d(seen_BHW, 8, normalised=False).view(2, 3, 8)
    assert codes_HWE[1, 0, 0].item() == pytest.approx(math.sin(2), abs=1e-6)
    torch.testing.assert_close(codes_HWE[0, 1, 4:], codes_HWE[0, 2, 4:])  # padding does not count on
    spread = sine_2d(seen_BHW, 8, normalised=True).view(2, 3, 8)
    torch.testing.assert_close(spread[0, 1, 4:6], torch.tensor([0.0, 1.0]), rtol=0, atol=1e-5)  # 2 pi at the end


def test_a_row_of_sentences_shares_its_image(make):
    decoder = make("stable").decoder
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
def test_likelihood_counts_the_words_of_real_objects_and_rises_while_they_are_learned(make, batch, variant):
    detector = make(variant)
    with torch.no_grad():
        raw = detector(batch.images_BCHW, batch.sizes_B2)
        before, words = detector.likelihood(raw, batch)
    assert words.tolist() == [15, 5]
    assert (before < -math.log(100) * words).all()
    optimizer = torch.optim.AdamW(detector.decoder.parameters(), 3e-3)
    for _ in range(20):
        detector.loss(raw, batch)["tokens"].backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        after, _ = detector.likelihood(raw, batch)
    assert (after > before).all()

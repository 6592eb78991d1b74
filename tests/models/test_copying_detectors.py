"""`pix2seq` and `patchseq` that copy objects from proposals: what holds for any detector holds for them."""

import re
from dataclasses import replace

import pytest
import torch

from boxwright.checkpoints.detector_file import load_detector, save_detector
from boxwright.config import UserError
from boxwright.models.patchseq import PatchSeq
from boxwright.models.pix2seq import Pix2Seq
from boxwright.models.sequence.likelihood import sequence_log_probs
from boxwright.models.sequence.vocabulary import NOISE, PROMPT
from boxwright.types import Batch
from helpers.copying import KINDS, PATCHSEQ, PIX2SEQ, copying

kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(params=KINDS)
def detector(request):
    return copying(request.param)


def detect(detector, batch):
    return detector.decode(detector(batch.images_BCHW, batch.sizes_B2))


def assert_valid(predictions):
    assert predictions.boxes_BD4.shape == (2, 6, 4)
    assert ((predictions.boxes_BD4 >= 0) & (predictions.boxes_BD4 <= 1)).all()
    assert (predictions.boxes_BD4[..., 2:] >= predictions.boxes_BD4[..., :2]).all()
    assert (predictions.scores_BD.diff(dim=1) <= 0).all()
    assert ((predictions.scores_BD > 0) & (predictions.scores_BD <= 1)).all()
    assert ((predictions.labels_BD >= 0) & (predictions.labels_BD < 2)).all()


def test_any_height_and_width(detector):
    outputs = detector(torch.rand(2, 3, 101, 75), torch.tensor([[101, 75], [50, 60]]))
    assert outputs.cells.boxes_BQ4.shape == (2, 13 * 10 + 7 * 5 + 4 * 3, 4)
    assert_valid(detector.decode(outputs))


@kinds
def test_an_untrained_network_gives_valid_predictions(kind, batch):
    assert_valid(detect(copying(kind, trained=False), batch))


def test_the_content_of_padding_changes_nothing(detector, batch):
    noisy = replace(batch, images_BCHW=batch.images_BCHW.clone())
    noisy.images_BCHW[1, :, 64:] = 255
    torch.testing.assert_close(detect(detector, noisy).scores_BD, detect(detector, batch).scores_BD)


def test_an_image_does_not_depend_on_the_others_of_its_batch(detector, batch):
    both = detect(detector, batch)
    single = detect(detector, Batch(**{name: value[1:] for name, value in vars(batch).items()}))
    torch.testing.assert_close(both.boxes_BD4[1:], single.boxes_BD4, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(both.scores_BD[1:], single.scores_BD, atol=1e-5, rtol=1e-4)


WAYS = [{"beams": 2}, {"repeats": False}, {"scores": "classes"}, {"scores": "product"}, {"top_p": 0.9, "top_k": 5}]
WAYS = [("pix2seq", way) for way in [*WAYS, {"grammar": False}, {"seed": 3, "top_p": 1.0}]]


@pytest.mark.parametrize(("kind", "way"), [*WAYS, ("patchseq", {"top_k": 4, "seed": 1})], ids=str)
def test_every_way_of_sampling_gives_valid_predictions(kind, way, batch, tmp_path):
    save_detector(tmp_path / "x.safetensors", copying(kind, **way), {})
    assert_valid(detect(load_detector(tmp_path / "x"), batch))


def test_without_repeats_no_object_is_generated_twice(batch):
    """With two coordinates and two classes there are few; the decoder would repeat the best one."""
    detector = copying("pix2seq", bins=2, max_objects=18, length=90, repeats=False)
    detector.decoder.apart.data.fill_(0.0)
    tokens = detector.generate(detector(batch.images_BCHW, batch.sizes_B2)).tokens_BL.unflatten(1, (-1, 5))
    assert all(len({tuple(row) for row in rows}) == 18 for rows in tokens.tolist())


def test_beams_are_never_less_probable(batch):
    for seed in range(3):
        detector = copying("pix2seq")
        torch.manual_seed(seed)
        for parameter in detector.decoder.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
        outputs = detector(batch.images_BCHW, batch.sizes_B2)
        greedy = detector.generate(outputs).log_probs_BL.sum(1)
        detector.config = replace(detector.config, beams=3)
        assert (detector.generate(outputs).log_probs_BL.sum(1) >= greedy - 1e-3).all()


def test_a_checkpoint_predicts_the_same(detector, batch, tmp_path):
    save_detector(tmp_path / "x.safetensors", detector, {})
    predictions, again = (detect(one, batch) for one in (detector, load_detector(tmp_path / "x")))
    assert torch.equal(predictions.boxes_BD4, again.boxes_BD4)
    assert torch.equal(predictions.scores_BD, again.scores_BD)


@torch.no_grad()
def test_classes_in_another_order_are_the_same_classes(detector, batch):
    target = detector.with_classes(("dog", "cat"), pretrained=False).eval()
    found, again = detect(detector, batch), detect(target, batch)
    torch.testing.assert_close(again.scores_BD, found.scores_BD)
    torch.testing.assert_close(again.boxes_BD4, found.boxes_BD4)
    assert torch.equal(again.labels_BD, 1 - found.labels_BD)


@torch.no_grad()
def test_known_classes_keep_their_scores_beside_others(detector, batch):
    target = detector.with_classes(("fox", "dog", "emu"), image_size=128, pretrained=False).eval()
    assert target.image_size == 128
    before, after = detector(batch.images_BCHW, batch.sizes_B2), target(batch.images_BCHW, batch.sizes_B2)
    torch.testing.assert_close(after.cells.many_BQK[..., 1], before.cells.many_BQK[..., 1])
    torch.testing.assert_close(after.cells.boxes_BQ4, before.cells.boxes_BQ4)
    enter, old = target.proposer.enter.weight, detector.proposer.enter.weight
    assert torch.equal(enter[:, [*range(24), 25]], old[:, [*range(24), 25]])
    for name in ("own_class", "rescore"):
        new, was = (getattr(one.decoder, name) for one in (target, detector))
        assert torch.equal(new.weight[1], was.weight[1])
        assert torch.equal(new.bias[1], was.bias[1])
    embedding, known = target.decoder.class_embedding, detector.decoder.class_embedding
    assert torch.equal(embedding[[1, 3]], known[[1, 2]])  # dog, and not told
    larger = torch.rand(1, 3, 128, 128), torch.tensor([[128, 128]])
    assert (target.decode(target(*larger)).labels_BD < 3).all()


def test_the_likelihood_is_that_of_the_tokens_with_untold_classes(detector, batch):
    outputs = detector(batch.images_BCHW, batch.sizes_B2)
    memory = detector.decoder_memory(outputs)
    classes = memory.vocabulary.class_tokens(batch.labels_BN)
    told = torch.cat([memory.vocabulary.coordinate_tokens(batch.boxes_BN4), classes[..., None]], -1)
    untold = told.clone()
    untold[..., 4] = NOISE
    inputs = torch.nn.functional.pad(untold.flatten(1)[:, :-1], (1, 0), value=PROMPT)
    with torch.no_grad():
        total, counts = detector.likelihood(outputs, batch)
        whole = detector.decoder(inputs, memory)
    assert counts.tolist() == [15, 5]
    each = whole.log_softmax(-1).gather(2, told.flatten(1)[..., None])
    torch.testing.assert_close(total[0], each[0].sum(), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(total[1], each[1, :5].sum(), rtol=1e-4, atol=1e-3)


@pytest.mark.filterwarnings("ignore:an image has more objects")
def test_a_longer_sequence_begins_as_a_shorter_one(detector, batch, tmp_path):
    outputs = detector(batch.images_BCHW, batch.sizes_B2)
    before = detector.generate(outputs)
    with pytest.raises(UserError, match=r"1 to 6, not 40; `detector.lengthen\(40\)`"):
        detector.generate(outputs, 40)
    detector.lengthen(40)
    generated = detector.generate(outputs)
    assert generated.tokens_BL.shape == (2, 200)
    assert torch.equal(generated.tokens_BL[:, :30], before.tokens_BL)
    save_detector(tmp_path / "long.safetensors", detector, {})
    assert torch.equal(load_detector(tmp_path / "long").generate(outputs).tokens_BL, generated.tokens_BL)
    with torch.no_grad():
        again = sequence_log_probs(generated.tokens_BL, detector.decoder, detector.decoder_memory(outputs), PROMPT)
    torch.testing.assert_close(generated.log_probs_BL, again, rtol=0, atol=1e-3)
    with pytest.raises(UserError, match="has room for 40 objects already, not 39"):
        detector.lengthen(39)


def test_given_objects_come_first_and_only_wanted_classes_follow(detector, batch):
    outputs = detector(batch.images_BCHW, batch.sizes_B2)
    generated = detector.generate(outputs, 5, batch, [1])
    first = detector.to_predictions(generated, outputs)
    for row in range(2):
        count = int(batch.valid_BN[row].sum())
        torch.testing.assert_close(first.boxes_BD4[row, :count], batch.boxes_BN4[row, :count], atol=0.03, rtol=0)
        assert (first.scores_BD[row, :count] == 0).all()
        assert (first.scores_BD[row, count:] > 0).all()
    classes = generated.tokens_BL.unflatten(1, (-1, 5))[:, 3:, 4]
    assert set(classes.flatten().tolist()) <= {NOISE, int(detector.vocabulary().class_tokens(torch.tensor(1)))}
    found = detector.complete(outputs, batch, [1])
    assert (found.labels_BD[found.scores_BD > 0] == 1).all()


def painted():
    """Two grey images of 64 pixels with a bright object, of class 0, and dark ones, of class 1."""
    boxes_BN4 = torch.tensor([[[0.1, 0.1, 0.45, 0.5], [0.5, 0.5, 0.95, 0.9]], [[0.2, 0.1, 0.7, 0.6], [0, 0, 0, 0]]])
    images_BCHW = torch.full((2, 3, 64, 64), 128, dtype=torch.uint8)
    for row, n, colour in ((0, 0, 250), (0, 1, 5), (1, 0, 5)):
        x1, y1, x2, y2 = (boxes_BN4[row, n] * 64).round().long().tolist()
        images_BCHW[row, :, y1:y2, x1:x2] = colour
    whole, valid = torch.tensor([[64, 64]] * 2), torch.tensor([[True, True], [True, False]])
    return Batch(images_BCHW, whole, whole, boxes_BN4, torch.tensor([[0, 1], [1, 0]]), valid, torch.arange(2))


@kinds
def test_a_small_set_is_learned_and_detected(kind):
    detector, batch = copying(kind, trained=False, image_size=64), painted()
    optimizer = torch.optim.AdamW(detector.train().parameters(), 3e-3)
    totals = []
    for _ in range(60):
        total = torch.stack(list(detector.loss(detector(batch.images_BCHW, batch.sizes_B2), batch).values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert sum(totals[-5:]) < 0.5 * sum(totals[:5])
    found = detect(detector.eval(), batch)
    for row, n in batch.valid_BN.nonzero().tolist():
        near = (found.boxes_BD4[row] - batch.boxes_BN4[row, n]).abs().amax(-1) < 0.06
        best = int(found.scores_BD[row].where(near, -1.0).argmax())
        assert near.any(), f"object {n} of image {row} is missing"
        assert found.labels_BD[row, best] == batch.labels_BN[row, n]
        assert found.scores_BD[row, best] > 0.3


@pytest.mark.parametrize(
    ("network", "config", "message"),
    [
        (Pix2Seq, replace(PIX2SEQ, noise=False), "fills sequences up with noise: leave noise=True"),
        (Pix2Seq, replace(PIX2SEQ, length=29), "length=29"),
        (Pix2Seq, replace(PIX2SEQ, class_ids=(1,)), "not for these 2"),
        (
            Pix2Seq,
            replace(PIX2SEQ, backbone="pix2seq_resnet50"),
            "of pix2seq's published sizes, such as --size resnet50",
        ),
        (PatchSeq, replace(PATCHSEQ, fine=0), "set fine > 0 and noise=True"),
        (PatchSeq, replace(PATCHSEQ, noise=False), "set fine > 0 and noise=True"),
    ],
)
def test_what_does_not_fit_together_is_refused(network, config, message):
    with pytest.raises(UserError, match=re.escape(message)):
        network(config, ("cat", "dog"), pretrained=False)


def test_the_pyramid_and_the_cells_are_what_others_learn_from(detector, batch):
    maps, cells = detector.feature_maps(), detector.cell_predictions(detector(batch.images_BCHW, batch.sizes_B2))
    assert maps.strides == [8, 16, 32]
    assert cells.logits_BQK.shape == (2, 12 * 12 + 6 * 6 + 3 * 3, 2)
    assert cells.boxes_BQ4.shape == (2, 12 * 12 + 6 * 6 + 3 * 3, 4)
    assert detector.backbone_parameters()

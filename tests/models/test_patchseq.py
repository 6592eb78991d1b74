from dataclasses import replace

import pytest
import torch

from boxwright.checkpoints.detector_file import load_detector, save_detector
from boxwright.config import UserError
from boxwright.models.patchseq import PUBLISHED, SIZES, PatchSeq, PatchSeqConfig
from boxwright.models.sequence.likelihood import sequence_log_probs
from boxwright.models.sequence.vocabulary import PROMPT
from boxwright.types import Batch

CONFIG = PatchSeqConfig(
    "test_efficientnet", image_size=96, encoder_layers=1, decoder_layers=2, dim=24, hidden=48, heads=3, max_objects=6
)
FORMS = {
    "whole": {},
    "published": PUBLISHED,
    "published to the last object": PUBLISHED | {"end_bias": -torch.inf},
    "not pointing": {"pointing": False},
    "patches alone": {"fine": 0},
    "class last": {"noise": True},
    "in order": {"shuffle": False},
    "drawn": {"top_k": 3, "seed": 5},
}


def build(form="whole", **changes):
    torch.manual_seed(0)
    return PatchSeq(replace(CONFIG, **FORMS[form], **changes), ("cat", "dog"), pretrained=False)


@pytest.fixture(params=FORMS)
def detector(request):
    return build(request.param)


def loss(detector, batch, seed=0):
    torch.manual_seed(seed)
    return detector.loss(detector(batch.images_BCHW, batch.sizes_B2, batch), batch)["tokens"]


def test_any_height_and_width(detector):
    outputs = detector.eval()(torch.rand(2, 3, 101, 75), torch.tensor([[101, 75], [50, 60]]))
    assert outputs.patches_BPE.shape == (2, 7 * 5, 24)
    assert detector.decode(outputs).boxes_BD4.shape == (2, 6, 4)


def test_an_untrained_network_gives_valid_predictions(detector, batch):
    predictions = detector.eval().decode(detector(batch.images_BCHW, batch.sizes_B2))
    assert predictions.boxes_BD4.shape == (2, 6, 4)
    assert ((predictions.boxes_BD4 >= 0) & (predictions.boxes_BD4 <= 1)).all()
    assert (predictions.boxes_BD4[..., 2:] >= predictions.boxes_BD4[..., :2]).all()
    assert (predictions.scores_BD.diff(dim=1) <= 0).all()
    assert ((predictions.scores_BD >= 0) & (predictions.scores_BD <= 1)).all()
    assert ((predictions.labels_BD >= 0) & (predictions.labels_BD < 2)).all()


def test_generation_has_the_log_probabilities_of_whole_sequences(detector, batch):
    outputs = detector.eval()(batch.images_BCHW, batch.sizes_B2)
    generated = detector.generate(outputs)
    whole = sequence_log_probs(generated.tokens_BL, detector.decoder, outputs, PROMPT)
    counted = generated.log_probs_BL != 0
    torch.testing.assert_close(generated.log_probs_BL[counted], whole[counted], atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:an image has more objects")
def test_a_sequence_with_more_room_begins_as_before_and_learns_more_objects(detector, batch, tmp_path):
    outputs = detector.eval()(batch.images_BCHW, batch.sizes_B2)
    before = detector.generate(outputs).tokens_BL
    with pytest.raises(UserError, match=r"1 to 6, not 40; `detector.lengthen\(40\)`"):
        detector.generate(outputs, 40)
    detector.lengthen(40)
    slots = len(detector.slots)
    longer = detector.generate(outputs).tokens_BL
    assert longer.shape == (2, 40 * slots)
    assert (longer[:, : 6 * slots] == before).all()
    save_detector(tmp_path / "long.safetensors", detector, {})
    assert (load_detector(tmp_path / "long").generate(outputs).tokens_BL == longer).all()
    many = {name: getattr(batch, name).repeat_interleave(20, 1) for name in ("boxes_BN4", "labels_BN", "valid_BN")}
    loss(detector, replace(batch, **many)).backward()
    table = detector.decoder.position_embedding
    assert table is None or table.grad[39 * slots : 40 * slots].abs().sum() > 0


def test_several_sequences_of_an_image_have_its_own_patches(batch):
    detector = build().eval()
    outputs = detector(batch.images_BCHW, batch.sizes_B2)
    tokens = detector.generate(outputs).tokens_BL.repeat_interleave(2, 0)
    with torch.no_grad():
        twice, once = detector.decoder(tokens, outputs), detector.decoder(tokens[::2], outputs)
    torch.testing.assert_close(twice[::2], once, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(twice[1::2], once, atol=1e-5, rtol=1e-5)


def test_every_parameter_learns(detector, batch):
    loss(detector.train(), batch).backward()
    still = [name for name, p in detector.named_parameters() if p.requires_grad and p.grad is None]
    assert still == []


def test_images_without_objects_have_a_finite_loss_and_gradients(detector, batch):
    empty = replace(batch, valid_BN=torch.zeros_like(batch.valid_BN))
    loss(detector.train(), empty).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in detector.parameters())
    generated = detector.eval().likelihood(detector(batch.images_BCHW, batch.sizes_B2), empty)
    assert generated[0].isfinite().all()


def test_loss_does_not_depend_on_padding_rows(batch):
    detector = build("published", shuffle=False).eval()
    wider = {"boxes_BN4": (0, 0, 0, 3), "labels_BN": (0, 3), "valid_BN": (0, 3)}
    padded = replace(batch, **{k: torch.nn.functional.pad(getattr(batch, k), by) for k, by in wider.items()})
    torch.testing.assert_close(loss(detector, padded), loss(detector, batch))


def test_of_more_objects_than_a_sequence_holds_as_many_as_fit_are_learned(batch):
    many = replace(
        batch,
        boxes_BN4=batch.boxes_BN4[:, :1].repeat(1, 20, 1),
        labels_BN=batch.labels_BN[:, :1].repeat(1, 20),
        valid_BN=torch.ones(len(batch), 20, dtype=torch.bool),
    )
    with pytest.warns(UserWarning, match="more objects than the"):
        assert loss(build(), many).isfinite()


def test_the_content_of_padding_changes_nothing(batch):
    detector = build().eval()
    noisy = batch.images_BCHW.clone()
    noisy[1, :, 64:] = 255
    clean = detector(batch.images_BCHW, batch.sizes_B2).patches_BPE
    torch.testing.assert_close(detector(noisy, batch.sizes_B2).patches_BPE, clean)


@pytest.mark.parametrize("form", FORMS)
def test_given_objects_are_continued(form, batch):
    detector = build(form).eval()
    outputs = detector(batch.images_BCHW, batch.sizes_B2)
    given = int(batch.valid_BN.sum(1).max())
    generated = detector.generate(outputs, objects=given + 2, given=batch)
    slots = outputs.vocabulary.slots
    assert generated.tokens_BL.shape[1] == (given + 2) * slots
    first = detector.to_predictions(generated, outputs)
    true = batch.valid_BN[0].nonzero()[0, 0]
    atol = 1.01 / 96 if detector.config.fine else 16.01 / 96
    torch.testing.assert_close(first.boxes_BD4[0, 0], batch.boxes_BN4[0, true], atol=atol, rtol=0)
    assert first.scores_BD[0, 0] == 0  # what is given is not found


def test_only_the_wanted_classes_are_generated(detector, batch):
    outputs = detector.eval()(batch.images_BCHW, batch.sizes_B2)
    nothing = replace(batch, valid_BN=torch.zeros_like(batch.valid_BN))
    predictions = detector.complete(outputs, nothing, classes=[1])
    assert (predictions.labels_BD[predictions.scores_BD > 0] == 1).all()


def test_more_objects_than_the_capacity_are_refused(batch):
    detector = build().eval()
    outputs = detector(batch.images_BCHW, batch.sizes_B2)
    with pytest.raises(UserError, match="1 to 6, not 7"):
        detector.generate(outputs, objects=7)
    with pytest.raises(UserError, match="can be generated"):
        detector.generate(outputs, objects=1, given=batch)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["whole", "class last", "published"])
def test_a_small_set_is_learned_and_detected(form, batch):
    detector = build(form, dropout=0.0, drop_path=0.0, max_objects=3).train()
    optimizer = torch.optim.AdamW(detector.parameters(), lr=3e-3)
    for step in range(150):
        value = loss(detector, batch, step)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
    detector.eval()
    predictions = detector.decode(detector(batch.images_BCHW, batch.sizes_B2))
    atol = 5 / 96 if detector.config.fine else 17 / 96
    for row in range(len(batch)):
        for box in batch.boxes_BN4[row][batch.valid_BN[row]]:
            assert (predictions.boxes_BD4[row] - box).abs().amax(-1).min() < atol


def test_a_checkpoint_predicts_the_same(detector, batch, tmp_path):
    save_detector(tmp_path / "x.safetensors", detector, {})
    loaded, detector = load_detector(tmp_path / "x"), detector.eval()
    predictions, again = (d.decode(d(batch.images_BCHW, batch.sizes_B2)) for d in (detector, loaded))
    torch.testing.assert_close(predictions.boxes_BD4, again.boxes_BD4)


@pytest.mark.parametrize("form", ["whole", "published"])
def test_classes_keep_their_embeddings_by_name(form, batch):
    source = build(form).eval()
    with torch.no_grad():
        source.decoder.output_bias.normal_()
    target = source.with_classes(("fox", "dog", "cat"), pretrained=False).eval()
    outputs, again = (d(batch.images_BCHW, batch.sizes_B2) for d in (source, target))
    start = torch.full((2, 1), PROMPT)
    old, new = source.decoder(start, outputs), target.decoder(start, again)
    torch.testing.assert_close(new[..., 103], old[..., 101])  # cat
    torch.testing.assert_close(new[..., 102], old[..., 102])  # dog
    torch.testing.assert_close(new[..., 104:], old[..., 103:])
    larger = source.with_classes(source.names, image_size=128, pretrained=False).eval()
    assert larger.decode(larger(torch.rand(1, 3, 128, 128), torch.tensor([[128, 128]]))).boxes_BD4.shape == (1, 6, 4)


def test_sizes_grow():
    counts = []
    for size in ("nano", "small", "medium"):
        with torch.device("meta"):
            shape = replace(SIZES[size], backbone="test_efficientnet")
        counts.append(sum(p.numel() for p in PatchSeq(shape, ("a",), pretrained=False).parameters()))
    assert counts == sorted(counts)


def test_an_image_does_not_depend_on_the_others_of_its_batch(batch):
    detector = build().eval()
    both = detector.decode(detector(batch.images_BCHW, batch.sizes_B2))
    alone = Batch(**{name: value[1:] for name, value in vars(batch).items()})
    single = detector.decode(detector(alone.images_BCHW, alone.sizes_B2))
    torch.testing.assert_close(both.boxes_BD4[1:], single.boxes_BD4, atol=1e-5, rtol=1e-5)

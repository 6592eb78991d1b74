from dataclasses import replace

import pytest
import torch

from boxwright.checkpoints.detector_file import load_detector, save_detector
from boxwright.config import UserError
from boxwright.models.pix2seq import SIZES, Pix2Seq
from boxwright.types import Batch
from helpers.small_pix2seq import CONFIG


@pytest.fixture
def detector():
    torch.manual_seed(0)
    return Pix2Seq(CONFIG, ("cat", "dog"), pretrained=False)


def losses(detector, batch, seed=0):
    torch.manual_seed(seed)
    return detector.loss(detector(batch.images_BCHW, batch.sizes_B2, batch), batch)


def test_any_height_and_width(detector):
    memory = detector(torch.rand(2, 3, 101, 75), torch.tensor([[101, 75], [50, 60]]))
    assert memory.shape == (2, 7 * 5, 24)
    assert detector.decode(memory).boxes_BD4.shape == (2, 6, 4)


def test_the_content_of_padding_changes_nothing(detector, batch):
    detector.eval()
    noisy = batch.images_BCHW.clone()
    noisy[1, :, 64:] = 255
    clean = detector(batch.images_BCHW, batch.sizes_B2)
    torch.testing.assert_close(detector(noisy, batch.sizes_B2), clean)


def test_padding_is_grey(detector, batch):
    detector.eval()
    grey = batch.images_BCHW / 255
    grey[1, :, 64:] = 0.3
    whole = torch.full_like(batch.sizes_B2, 96)
    torch.testing.assert_close(detector(grey, whole), detector(batch.images_BCHW, batch.sizes_B2))


def test_an_untrained_network_gives_valid_predictions(detector, batch):
    for constrained in (True, False):
        detector.config = replace(CONFIG, grammar=constrained)
        predictions = detector.eval().decode(detector(batch.images_BCHW, batch.sizes_B2))
        assert predictions.boxes_BD4.shape == (2, 6, 4)
        assert ((predictions.boxes_BD4 >= 0) & (predictions.boxes_BD4 <= 1)).all()
        assert (predictions.boxes_BD4[..., 2:] >= predictions.boxes_BD4[..., :2]).all()
        assert (predictions.scores_BD.diff(dim=1) <= 0).all()
        assert ((predictions.scores_BD > 0) & (predictions.scores_BD <= 1)).all()
        assert ((predictions.labels_BD >= 0) & (predictions.labels_BD < 2)).all()


def test_decoding_is_repeatable_even_from_the_nucleus(detector, batch):
    detector.config = replace(CONFIG, top_p=0.9)
    memory = detector.eval()(batch.images_BCHW, batch.sizes_B2)
    first, again = detector.decode(memory), detector.decode(memory)
    assert (first.boxes_BD4 == again.boxes_BD4).all()


def test_the_loss_is_the_weighted_mean_over_tokens(detector, batch):
    """An untrained network finds all tokens about equally likely, whatever the weights."""
    loss = losses(detector.eval(), batch)["tokens"].item()
    assert abs(loss - torch.tensor(180.0).log()) < 1


def test_more_sequences_per_image_do_not_change_the_expected_loss(detector, batch):
    detector.eval()
    few = torch.stack([losses(detector, batch, seed)["tokens"] for seed in range(20)]).mean()
    detector.config = replace(CONFIG, sentences=20)
    torch.testing.assert_close(losses(detector, batch)["tokens"], few, rtol=0.05, atol=0.05)


def test_loss_does_not_depend_on_padding_rows(detector, batch):
    detector.config = replace(CONFIG, sentences=200)
    wide = Batch(
        **vars(batch)
        | {
            "boxes_BN4": torch.cat([batch.boxes_BN4, torch.zeros(2, 5, 4)], 1),
            "labels_BN": torch.cat([batch.labels_BN, torch.zeros(2, 5, dtype=torch.long)], 1),
            "valid_BN": torch.cat([batch.valid_BN, torch.zeros(2, 5, dtype=torch.bool)], 1),
        }
    )
    one, other = (losses(detector.eval(), b)["tokens"] for b in (batch, wide))
    torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)


def test_images_without_objects_have_a_finite_loss_and_gradients(detector, batch):
    empty = Batch(**vars(batch) | {"valid_BN": torch.zeros_like(batch.valid_BN)})
    losses(detector, empty)["tokens"].backward()
    assert all(torch.isfinite(p.grad).all() for p in detector.parameters() if p.grad is not None)


def test_every_parameter_learns(detector, batch):
    losses(detector.eval(), batch)["tokens"].backward()
    assert [name for name, p in detector.named_parameters() if p.requires_grad and p.grad is None] == []


def test_a_small_set_is_learned_and_detected(detector, batch):
    torch.manual_seed(0)
    config = replace(CONFIG, dropout=0.0, drop_path=0.0, sentences=4, decoder_dim=48)
    detector = Pix2Seq(config, ("cat", "dog"), pretrained=False)
    optimizer = torch.optim.AdamW(detector.parameters(), 5e-3)
    for _ in range(60):
        loss = detector.loss(detector(batch.images_BCHW, batch.sizes_B2, batch), batch)["tokens"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 1.0
    predictions = detector.eval().decode(detector(batch.images_BCHW, batch.sizes_B2))
    second = predictions.boxes_BD4[1, 0], predictions.labels_BD[1, 0]
    torch.testing.assert_close(second[0], batch.boxes_BN4[1, 0], rtol=0, atol=0.03)
    assert second[1] == batch.labels_BN[1, 0]


def test_more_classes_than_tokens_are_refused():
    with pytest.raises(UserError, match="19 classes"):
        Pix2Seq(CONFIG, tuple(map(str, range(20))), pretrained=False)


def test_a_sequence_too_short_for_its_objects_is_refused():
    with pytest.raises(UserError, match="length=29"):
        Pix2Seq(replace(CONFIG, length=29), ("cat",), pretrained=False)


def test_sizes_grow_and_the_published_ones_have_their_published_parameters():
    with torch.device("meta"):
        networks = {size: Pix2Seq(config, ("cat",), pretrained=False) for size, config in SIZES.items()}
    counts = {size: sum(p.numel() for p in network.parameters()) for size, network in networks.items()}
    assert list(counts.values()) == sorted(counts.values())
    published = {"resnet50": 36_587_768, "resnet50-c4": 84_697_592, "vit-b": 115_169_976, "vit-l": 341_161_912}
    assert {size: counts[size] for size in published} == published


def test_only_the_labels_of_the_names_are_ever_detected(batch):
    config = replace(CONFIG, class_ids=(1, 17))
    detector = Pix2Seq(config, ("person", "cat"), pretrained=False).eval()
    with torch.no_grad():
        detector.decoder.output_bias[117] += 50  # the class token of label 17
        detector.decoder.output_bias[105] += 90  # and one for a label that nobody has
        predictions = detector.decode(detector(batch.images_BCHW, batch.sizes_B2))
    assert set(predictions.labels_BD.flatten().tolist()) == {1}
    with pytest.raises(UserError, match="not for these 2"):
        Pix2Seq(replace(CONFIG, class_ids=(1,)), ("person", "cat"), pretrained=False)


def test_a_sequence_of_150_objects_begins_as_one_of_6(detector, batch, tmp_path):
    """Beyond the table; the first objects stay as they were, and a checkpoint keeps the room."""
    outputs = detector.eval()(batch.images_BCHW, batch.sizes_B2)
    before = detector.generate(outputs)
    with pytest.raises(UserError, match=r"1 to 6, not 150; `detector.lengthen\(150\)`"):
        detector.generate(outputs, 150)
    detector.lengthen(150)
    generated = detector.generate(outputs)
    assert generated.tokens_BL.shape == (2, 750)
    assert (generated.tokens_BL[:, :30] == before.tokens_BL).all()
    assert detector.decode(outputs).boxes_BD4.shape == (2, 150, 4)
    save_detector(tmp_path / "long.safetensors", detector, {})
    again = load_detector(tmp_path / "long")
    assert (again.generate(outputs).tokens_BL == generated.tokens_BL).all()


@pytest.mark.filterwarnings("ignore:an image has more objects")
def test_150_true_objects_are_learned_from(detector, batch):
    many = {name: getattr(batch, name).repeat_interleave(75, 1) for name in ("boxes_BN4", "labels_BN", "valid_BN")}
    detector.lengthen(150)
    crowd = Batch(**vars(batch) | many)
    losses(detector.eval(), crowd)["tokens"].backward()
    assert detector.decoder.position_embedding.grad[740:750].abs().sum() > 0
    assert detector.likelihood(detector(batch.images_BCHW, batch.sizes_B2), crowd)[1].max() == 750


def test_sequences_end_where_they_were_trained_without_noise(detector, batch):
    outputs = detector.eval()(batch.images_BCHW, batch.sizes_B2)
    assert not CONFIG.sampling.may_end
    assert replace(CONFIG, noise=False).sampling.end_bias == 0
    detector.config = replace(CONFIG, noise=False, end_bias=100.0)
    assert (detector.decode(outputs).scores_BD == 0).all()
    detector.config = replace(CONFIG, noise=False, end_bias=float("-inf"))
    assert (detector.decode(outputs).scores_BD > 0).all()


def test_a_small_set_is_learned_to_its_end_without_noise(batch):
    """Sequences have each object once, then end."""
    torch.manual_seed(0)
    config = replace(CONFIG, dropout=0.0, drop_path=0.0, sentences=4, decoder_dim=48, noise=False)
    detector = Pix2Seq(config, ("cat", "dog"), pretrained=False)
    optimizer = torch.optim.AdamW(detector.parameters(), 5e-3)
    for _ in range(60):
        loss = detector.loss(detector(batch.images_BCHW, batch.sizes_B2, batch), batch)["tokens"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    predictions = detector.eval().decode(detector(batch.images_BCHW, batch.sizes_B2))
    assert (predictions.scores_BD > 0).sum(1).tolist() == batch.valid_BN.sum(1).tolist()


@pytest.mark.parametrize(
    "how",
    [{"beams": 2}, {"repeats": False}, {"scores": "classes"}, {"scores": "product"}, {"top_p": 0.9, "top_k": 5}],
    ids=str,
)
def test_every_way_of_sampling_gives_valid_predictions(detector, batch, how, tmp_path):
    detector.config = replace(CONFIG, **how)
    save_detector(tmp_path / "x.safetensors", detector, {})
    detector = load_detector(tmp_path / "x")
    predictions = detector.decode(detector(batch.images_BCHW, batch.sizes_B2))
    assert ((predictions.scores_BD > 0) & (predictions.scores_BD <= 1)).all()
    assert (predictions.scores_BD.diff(dim=1) <= 0).all()
    assert (predictions.boxes_BD4[..., 2:] >= predictions.boxes_BD4[..., :2]).all()

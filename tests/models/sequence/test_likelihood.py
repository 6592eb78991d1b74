from dataclasses import replace

import pytest
import torch

from boxwright.models.pix2seq import Pix2Seq
from boxwright.models.sequence.generate import generate
from boxwright.models.sequence.generation import Generated
from boxwright.models.sequence.likelihood import object_log_probs, score_objects, sequence_log_probs
from boxwright.models.sequence.sampling import Sampling
from boxwright.models.sequence.vocabulary import NOISE, PAD, PROMPT
from boxwright.types import Batch
from helpers.small_pix2seq import CONFIG


@pytest.fixture
def detector():
    torch.manual_seed(0)
    detector = Pix2Seq(CONFIG, ("cat", "dog"), pretrained=False).eval()
    torch.nn.init.normal_(detector.decoder.token_embedding, std=0.3)
    return detector


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.9), Sampling(beams=2)])
def test_log_probabilities_of_generation_are_those_of_whole_sequences(detector, batch, sampling):
    outputs = detector(batch.images_BCHW, batch.sizes_B2)
    generated = generate(detector.decoder, outputs, detector.vocabulary().token_constraints(2), 6, sampling)
    again = sequence_log_probs(generated.tokens_BL, detector.decoder, outputs, PROMPT)
    torch.testing.assert_close(generated.log_probs_BL, again, rtol=0, atol=1e-4)
    torch.testing.assert_close(object_log_probs(generated.log_probs_BL).sum(1), again.sum(1), rtol=0, atol=1e-3)


@pytest.mark.parametrize("noise", [True, False])
def test_the_likelihood_of_the_targets_is_that_of_their_tokens(detector, batch, noise):
    """By hand, image by image: the objects as stored, each input class noise, then the end where there is one."""
    detector.config = replace(CONFIG, noise=noise)
    outputs = detector(batch.images_BCHW, batch.sizes_B2)
    totals, counts = detector.likelihood(outputs, batch)
    for row in range(2):
        valid = batch.valid_BN[row]
        coordinates = detector.vocabulary().coordinate_tokens(batch.boxes_BN4[row, valid]).tolist()
        classes = detector.vocabulary().class_tokens(batch.labels_BN[row, valid]).tolist()
        targets = [token for box, label in zip(coordinates, classes, strict=True) for token in (*box, label)]
        inputs = [PROMPT, *(token for box in coordinates for token in (*box, NOISE))]
        targets = targets if noise else [*targets, PAD]
        log_probs = detector.decoder(torch.tensor([inputs[: len(targets)]]), outputs[row : row + 1])[0].log_softmax(-1)
        expected = log_probs[range(len(targets)), targets].sum()
        torch.testing.assert_close(totals[row], expected, rtol=1e-5, atol=1e-4)
        assert counts[row] == len(targets)


def test_images_without_objects_have_no_tokens_but_the_end(detector, batch):
    empty = Batch(**vars(batch) | {"valid_BN": torch.zeros_like(batch.valid_BN)})
    outputs = detector(batch.images_BCHW, batch.sizes_B2)
    totals, counts = detector.likelihood(outputs, empty)
    assert totals.tolist() == counts.tolist() == [0, 0]
    detector.config = replace(CONFIG, noise=False)
    totals, counts = detector.likelihood(outputs, empty)
    assert (totals < 0).all()
    assert counts.tolist() == [1, 1]


def test_more_objects_than_a_sequence_holds_are_left_out(detector, batch):
    many = Batch(
        **vars(batch)
        | {name: getattr(batch, name).repeat_interleave(9, 1) for name in ("boxes_BN4", "labels_BN", "valid_BN")}
    )
    _, counts = detector.likelihood(detector(batch.images_BCHW, batch.sizes_B2), many)
    assert counts.max() == 30


def test_it_rises_while_the_targets_are_learned(detector, batch):
    outputs = detector(batch.images_BCHW, batch.sizes_B2)
    before = detector.likelihood(outputs, batch)[0].sum()
    optimizer = torch.optim.AdamW(detector.parameters(), 5e-3)
    for _ in range(20):
        loss = detector.loss(detector(batch.images_BCHW, batch.sizes_B2, batch), batch)["tokens"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert detector.likelihood(detector(batch.images_BCHW, batch.sizes_B2), batch)[0].sum() > before + 5


def test_scores_by_their_definitions():
    """Two classes with probabilities .6 and .2; coordinates with .5 each; then a slot behind the end."""
    classes = torch.tensor([[[0.6, 0.2], [0.0, 0.0]]]).log()
    log_probs = torch.tensor([[0.5, 0.5, 0.5, 0.5, 0.6, 1, 1, 1, 1, 1]]).log()
    generated = Generated(torch.zeros(1, 10), log_probs, classes)
    for how, expected in (("full", 0.6), ("classes", 0.75), ("product", 0.3)):
        scores, labels = score_objects(generated, how)
        torch.testing.assert_close(scores, torch.tensor([[expected, 0.0]]))
        assert labels[0, 0] == 0

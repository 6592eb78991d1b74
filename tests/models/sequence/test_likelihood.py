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
def test_generated_sentences_are_as_probable_as_when_read_again(detector, batch, sampling):
    raw = detector(batch.images_BCHW, batch.sizes_B2)
    said = generate(detector.decoder, raw, detector.vocabulary().token_constraints(2), 6, sampling)
    again = sequence_log_probs(said.tokens_BL, detector.decoder, raw, PROMPT)
    torch.testing.assert_close(said.log_probs_BL, again, rtol=0, atol=1e-4)
    torch.testing.assert_close(object_log_probs(said.log_probs_BL).sum(1), again.sum(1), rtol=0, atol=1e-3)


@pytest.mark.parametrize("noise", [True, False])
def test_the_likelihood_of_the_truth_is_that_of_its_words(detector, batch, noise):
    """By hand, image by image: the objects as stored, each class read as noise, then the end where there is one."""
    detector.config = replace(CONFIG, noise=noise)
    raw = detector(batch.images_BCHW, batch.sizes_B2)
    totals, words = detector.likelihood(raw, batch)
    for row in range(2):
        valid = batch.valid_BN[row]
        coordinates = detector.vocabulary().coordinate_tokens(batch.boxes_BN4[row, valid]).tolist()
        classes = detector.vocabulary().class_tokens(batch.labels_BN[row, valid]).tolist()
        said = [word for box, label in zip(coordinates, classes, strict=True) for word in (*box, label)]
        read = [PROMPT, *(word for box in coordinates for word in (*box, NOISE))]
        said = said if noise else [*said, PAD]
        log_probs = detector.decoder(torch.tensor([read[: len(said)]]), raw[row : row + 1])[0].log_softmax(-1)
        expected = log_probs[range(len(said)), said].sum()
        torch.testing.assert_close(totals[row], expected, rtol=1e-5, atol=1e-4)
        assert words[row] == len(said)


def test_images_without_objects_have_no_words_but_the_end(detector, batch):
    empty = Batch(**vars(batch) | {"valid_BN": torch.zeros_like(batch.valid_BN)})
    raw = detector(batch.images_BCHW, batch.sizes_B2)
    totals, words = detector.likelihood(raw, empty)
    assert totals.tolist() == words.tolist() == [0, 0]
    detector.config = replace(CONFIG, noise=False)
    totals, words = detector.likelihood(raw, empty)
    assert (totals < 0).all()
    assert words.tolist() == [1, 1]


def test_more_objects_than_a_sentence_holds_are_left_out(detector, batch):
    many = Batch(
        **vars(batch)
        | {name: getattr(batch, name).repeat_interleave(9, 1) for name in ("boxes_BN4", "labels_BN", "valid_BN")}
    )
    _, words = detector.likelihood(detector(batch.images_BCHW, batch.sizes_B2), many)
    assert words.max() == 30


def test_it_rises_while_the_truth_is_learned(detector, batch):
    raw = detector(batch.images_BCHW, batch.sizes_B2)
    before = detector.likelihood(raw, batch)[0].sum()
    optimizer = torch.optim.AdamW(detector.parameters(), 5e-3)
    for _ in range(20):
        loss = detector.loss(detector(batch.images_BCHW, batch.sizes_B2, batch), batch)["tokens"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert detector.likelihood(detector(batch.images_BCHW, batch.sizes_B2), batch)[0].sum() > before + 5


def test_scores_by_their_definitions():
    """Two classes with probabilities .6 and .2; coordinates with .5 each; then a place behind the end."""
    classes = torch.tensor([[[0.6, 0.2], [0.0, 0.0]]]).log()
    words = torch.tensor([[0.5, 0.5, 0.5, 0.5, 0.6, 1, 1, 1, 1, 1]]).log()
    said = Generated(torch.zeros(1, 10), words, classes)
    for how, expected in (("full", 0.6), ("classes", 0.75), ("product", 0.3)):
        scores, labels = score_objects(said, how)
        torch.testing.assert_close(scores, torch.tensor([[expected, 0.0]]))
        assert labels[0, 0] == 0

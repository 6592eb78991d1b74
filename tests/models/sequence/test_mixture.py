"""A decoder that copies: its sequences have the probabilities of a mixture, step by step or all at once."""

from dataclasses import replace

import pytest
import torch

from boxwright.models.sequence.likelihood import sequence_log_probs
from boxwright.models.sequence.proposal_decoder import OWN, overlaps
from boxwright.models.sequence.side_distributions import box_log_probs
from boxwright.models.sequence.vocabulary import NOISE, PROMPT
from helpers.copying import KINDS, copying


@pytest.fixture(params=KINDS)
def detector(request):
    return copying(request.param)


@torch.no_grad()
def test_an_object_has_the_probability_of_the_mixture(detector, batch):
    """Its box in each source, times its class there, by the weights of all; not token by token."""
    outputs = detector(batch.images_BCHW, batch.sizes_B2)
    proposals, decoder = detector.decoder_memory(outputs), detector.decoder
    generated = detector.generate(outputs)
    ids_BNS = generated.tokens_BL.unflatten(1, (-1, 5))
    vocabulary = proposals.vocabulary
    boxes_BN4, classes = vocabulary.boxes(ids_BNS[..., :4]), ids_BNS[..., 4] - vocabulary.class_tokens(torch.tensor(0))
    labels_BN = torch.where(ids_BNS[..., 4] == NOISE, 2, classes)
    states = decoder.states(boxes_BN4, labels_BN, proposals)[:, :-1]
    overlap = overlaps(boxes_BN4, proposals.boxes_BC4)[:, :-1]
    bins, edges = vocabulary.side_bins(ids_BNS[..., :4]), vocabulary.edges()
    copied = box_log_probs(proposals.boxes_BC4, proposals.spreads_BC4, bins, edges).mT
    own_boxes, own_spreads = decoder.own_boxes(states)
    own = box_log_probs(own_boxes, own_spreads, bins, edges).diagonal(dim1=1, dim2=2)[..., None]
    which = torch.where(ids_BNS[..., 4] == NOISE, 0, labels_BN + 1)
    named = decoder.class_log_probs(states, overlap, proposals)
    named = named.gather(3, which[:, :, None, None].expand(*named.shape[:3], 1))[..., 0]
    weights = decoder.log_weights(states, overlap, proposals)
    torch.testing.assert_close(weights.logsumexp(-1), torch.zeros(2, 6), atol=1e-5, rtol=0)
    expected = (weights + torch.cat([copied, own], -1) + named).logsumexp(-1)
    torch.testing.assert_close(generated.log_probs_BL.unflatten(1, (-1, 5)).sum(-1), expected, atol=2e-3, rtol=1e-3)


def test_any_tokens_can_be_read(detector, batch):
    """Also where no grammar keeps classes from the place of coordinates."""
    memory = detector.decoder_memory(detector(batch.images_BCHW, batch.sizes_B2))
    for length in (1, 4, 5, 13):
        tokens = torch.randint(memory.vocabulary.size, (2, length))
        with torch.no_grad():
            logits = detector.decoder(tokens, memory)
        assert logits.shape == (2, length, memory.vocabulary.size)
        assert logits.isfinite().all()


def test_overlaps_add_up_over_the_objects_so_far():
    proposals = torch.tensor([[[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1.0]]])
    written = torch.tensor([[[0, 0, 0.5, 0.25], [0, 0, 0.1, 0.1], [0.5, 0.5, 1, 1]]])
    expected = torch.tensor([[[0, 0], [0.25, 0], [0.2516, 0], [0.2516, 1.0]]])
    torch.testing.assert_close(overlaps(written, proposals), expected)
    twice = torch.cat([written, written[:, [2, 1, 0]]])
    torch.testing.assert_close(overlaps(twice, proposals)[:1], expected)
    assert overlaps(twice, proposals)[1].tolist()[1] == [0, 1]
    assert overlaps(written[:, :0], proposals).tolist() == [[[0, 0]]]


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_at_first_proposals_come_in_the_order_of_their_scores_but_not_twice(kind, batch):
    detector = copying(kind, trained=False)
    proposals = detector.decoder_memory(detector(batch.images_BCHW, batch.sizes_B2))
    decoder, nothing = detector.decoder, torch.zeros(2, 1, 20)
    states = decoder.states(torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.long), proposals)
    weights = decoder.log_weights(states, nothing, proposals)
    order, scores = weights[:, 0, :-1].argsort(descending=True), proposals.logits_BCK.amax(-1)
    assert (scores.gather(1, order).diff() <= 1e-6).all()
    torch.testing.assert_close(weights[..., -1], torch.full((2, 1), OWN).sigmoid().log())
    first = nothing.scatter(2, order[:, None, :1], 1.0)
    after = decoder.log_weights(states, first, proposals)
    assert (after.gather(2, order[:, None, :1]) < weights.gather(2, order[:, None, :1]) - 5).all()
    before, again = (decoder.class_log_probs(states, overlap, proposals)[:, 0, :-1] for overlap in (nothing, first))
    written = first[:, 0].bool()
    assert (again[written][:, 1:] < before[written][:, 1:] - 4).all()
    torch.testing.assert_close(again[~written], before[~written])
    labels = before[..., 1:].argmax(-1)
    assert torch.equal(labels, proposals.logits_BCK.argmax(-1))


def test_given_objects_are_read_at_once_or_one_by_one_the_same(detector, batch):
    """The first image has three, the second one: those beyond the first are read token by token."""
    outputs = detector(batch.images_BCHW, batch.sizes_B2)
    together = detector.generate(outputs, given=batch)
    for row in range(2):
        few = {name: value[row : row + 1] for name, value in vars(batch).items()}
        alone = replace(batch, **few)
        count = int(alone.valid_BN.sum())
        one = detector(alone.images_BCHW, alone.sizes_B2)
        generated = detector.generate(one, given=alone)
        assert torch.equal(generated.tokens_BL[0], together.tokens_BL[row])
        torch.testing.assert_close(generated.log_probs_BL[0], together.log_probs_BL[row], atol=1e-3, rtol=1e-3)
        with torch.no_grad():
            whole = sequence_log_probs(generated.tokens_BL, detector.decoder, detector.decoder_memory(one), PROMPT)
        torch.testing.assert_close(generated.log_probs_BL[:, 5 * count :], whole[:, 5 * count :], atol=1e-3, rtol=1e-3)
        assert (generated.log_probs_BL[:, : 5 * count] == 0).all()


@torch.no_grad()
def test_what_is_given_is_not_copied_again(batch):
    """An untrained decoder passes over it."""
    detector = copying("pix2seq", trained=False)
    outputs = detector(batch.images_BCHW, batch.sizes_B2)
    found = detector.to_predictions(detector.generate(outputs, 1))
    given = replace(batch, boxes_BN4=found.boxes_BD4, labels_BN=found.labels_BD, valid_BN=torch.ones(2, 1).bool())
    after = detector.to_predictions(detector.generate(outputs, 2, given))
    torch.testing.assert_close(after.boxes_BD4[:, 0], found.boxes_BD4[:, 0])
    assert (after.boxes_BD4[:, 1] - found.boxes_BD4[:, 0]).abs().amax(-1).min() > 0.05

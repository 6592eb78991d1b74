"""Objects copied from proposals: token by token, all at once, from given objects and in beams, numbers are the same."""

import pytest
import torch

from boxwright.models.sequence.generate import generate
from boxwright.models.sequence.likelihood import sequence_log_probs
from boxwright.models.sequence.proposal_decoder import SLOTS
from boxwright.models.sequence.sampling import Sampling
from boxwright.models.sequence.vocabulary import PROMPT
from helpers.proposals import PATCHES, SIDES, constraints, copying_decoder, random_proposals

OBJECTS = 20  # more than a bucket of the cache holds


@pytest.fixture
def decoder():
    return copying_decoder()


@pytest.fixture(params=[SIDES, PATCHES], ids=["sides", "patches"])
def proposals(request):
    return random_proposals(request.param)


def sequences(proposals, objects=4, per_image=1):
    """Random objects behind the start token, (B, L), without the class of the last one."""
    rules = constraints(proposals.vocabulary)
    generator = torch.Generator().manual_seed(2)
    choices = rules.allowed_PV.float().repeat(objects, 1)
    tokens = [torch.multinomial(choices, 1, generator=generator).flatten() for _ in range(3 * per_image)]
    return torch.cat([torch.full((3 * per_image, 1), rules.start), torch.stack(tokens)], 1)[:, :-1]


def in_steps(decoder, tokens_BL, proposals, prompt, per_image=1):
    cache = decoder.start(proposals, tokens_BL.shape[1], per_image)
    first = decoder.step(tokens_BL[:, :prompt], torch.arange(prompt), cache, (prompt - 1) % SLOTS)
    rest = [
        decoder.step(tokens_BL[:, i : i + 1], torch.tensor([i]), cache, i % SLOTS)
        for i in range(prompt, tokens_BL.shape[1])
    ]
    return torch.stack([first, *rest], 1)


@torch.no_grad()
@pytest.mark.parametrize("prompt", [1, 5, 10, 20])
def test_steps_give_the_logits_of_the_whole_sequence(decoder, proposals, prompt):
    tokens_BL = sequences(proposals)
    whole = decoder(tokens_BL, proposals)[:, prompt - 1 :]
    torch.testing.assert_close(in_steps(decoder, tokens_BL, proposals, prompt), whole, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("prompt", [1, 10])
def test_several_sequences_of_one_image_share_its_proposals(decoder, proposals, prompt):
    tokens_BL = sequences(proposals, per_image=2)
    whole = decoder(tokens_BL, proposals)
    for row in range(6):
        alone = decoder(tokens_BL[row : row + 1], first_image(proposals, row // 2))
        torch.testing.assert_close(whole[row], alone[0], rtol=0, atol=1e-5)
    steps = in_steps(decoder, tokens_BL, proposals, prompt, per_image=2)
    torch.testing.assert_close(steps, whole[:, prompt - 1 :], rtol=0, atol=1e-5)


def first_image(proposals, image):
    return type(proposals)(*(part[image : image + 1] for part in proposals[:-1]), proposals.vocabulary)


@torch.no_grad()
def test_no_token_depends_on_a_later_one(decoder, proposals):
    tokens_BL = sequences(proposals)
    before = decoder(tokens_BL, proposals)
    for length in (1, 3, 7, 15):
        logits_BLV = decoder(tokens_BL[:, :length], proposals)
        torch.testing.assert_close(logits_BLV, before[:, :length], rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_tokens_of_a_slot_share_all_probability(decoder, proposals):
    logits_BLV = decoder(sequences(proposals), proposals)
    allowed_LV = constraints(proposals.vocabulary).allowed_PV.repeat(4, 1)
    torch.testing.assert_close(logits_BLV.logsumexp(-1), torch.zeros(3, 20), rtol=0, atol=1e-5)
    assert logits_BLV.exp().masked_fill(allowed_LV, 0).max() < 1e-9


@torch.no_grad()
@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(top_p=0.9, seed=3), Sampling(beams=2)], ids=["greedy", "drawn", "beams"]
)
def test_log_probabilities_of_generation_are_those_of_whole_sequences(decoder, proposals, sampling):
    generated = generate(decoder, proposals, constraints(proposals.vocabulary), OBJECTS, sampling)
    again = sequence_log_probs(generated.tokens_BL, decoder, proposals, PROMPT)
    torch.testing.assert_close(generated.log_probs_BL, again, rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("counts", [(2, 2, 2), (3, 0, 1), (1, 2, 3)])
@pytest.mark.parametrize("sampling", [Sampling(top_k=4), Sampling(beams=2)], ids=["drawn", "beams"])
def test_sequences_go_on_from_given_objects(decoder, proposals, counts, sampling):
    rules = constraints(proposals.vocabulary)
    given_BL = sequences(proposals)[:, 1 : 3 * SLOTS + 1]
    given_BL = given_BL.masked_fill(torch.arange(3 * SLOTS) >= torch.tensor(counts)[:, None] * SLOTS, -1)
    generated = generate(decoder, proposals, rules, 6, sampling, given_BL[:, : max(counts) * SLOTS])
    again = sequence_log_probs(generated.tokens_BL, decoder, proposals, PROMPT)
    for row, count in enumerate(counts):
        begin = count * SLOTS
        assert torch.equal(generated.tokens_BL[row, :begin], given_BL[row, :begin])
        assert (generated.log_probs_BL[row, :begin] == 0).all()
        torch.testing.assert_close(generated.log_probs_BL[row, begin:], again[row, begin:], rtol=0, atol=1e-4)
    if sampling.beams == 1:
        alone = generate(decoder, first_image(proposals, 0), rules, 6, sampling, given_BL[:1, : counts[0] * SLOTS])
        assert torch.equal(alone.tokens_BL, generated.tokens_BL[:1])


@torch.no_grad()
def test_a_cache_is_its_tensors(decoder, proposals):
    """Between two objects, a cache with copies of the tensors goes on as the cache itself."""
    tokens_BL = sequences(proposals)
    cache = decoder.start(proposals, tokens_BL.shape[1])
    decoder.step(tokens_BL[:, :10], torch.arange(10), cache, SLOTS - 1)
    copied = cache.with_tensors({part.name: part.tensor.clone() for part in cache.tensors()})
    for n in range(10, 20):
        logits_BV, again_BV = (
            decoder.step(tokens_BL[:, n : n + 1], torch.tensor([n]), each, n % SLOTS) for each in (cache, copied)
        )
        torch.testing.assert_close(logits_BV, again_BV)

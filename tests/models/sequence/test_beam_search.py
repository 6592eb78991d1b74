import pytest
import torch

from boxwright.config import UserError
from boxwright.models.sequence.beam_search import BeamSearch
from boxwright.models.sequence.generate import generate
from boxwright.models.sequence.sampling import Sampling
from boxwright.models.sequence.vocabulary import Vocabulary
from helpers.decoders import BOXES, Babbler, clear_decoder


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    return clear_decoder(120)


@pytest.fixture
def memory():
    return torch.randn(3, 11, 24, generator=torch.Generator().manual_seed(1))


def means(generated):
    """Mean log-probability of the generated tokens."""
    counted = ((generated.tokens_BL == 0).cumsum(1) <= 1).sum(1)  # the end token counts
    return generated.log_probs_BL.sum(1) / counted


@pytest.mark.parametrize("end_bias", [-torch.inf, 0.0])
def test_a_beam_of_one_is_greedy(decoder, memory, end_bias):
    greedy = generate(decoder, memory, BOXES, 6, Sampling(end_bias=end_bias))
    with torch.no_grad():
        beams = BeamSearch(decoder, memory, BOXES, 6, Sampling(end_bias=end_bias))
        for number in range(6):
            beams.generate_object(number)
    assert all(torch.equal(one, other) for one, other in zip(beams.result()[:3], greedy[:3], strict=True))


@pytest.mark.parametrize("end_bias", [-torch.inf, 0.0])
@pytest.mark.parametrize("width", [2, 3])
@pytest.mark.parametrize("seed", range(8))
def test_beams_are_never_less_probable_than_greedy(memory, seed, width, end_bias):
    torch.manual_seed(seed)
    decoder = clear_decoder(120)
    greedy, beam = (
        means(generate(decoder, memory, BOXES, 6, Sampling(end_bias=end_bias, beams=w))) for w in (1, width)
    )
    assert (beam >= greedy - 1e-6).all()


def test_beams_usually_find_something_more_probable(memory):
    gains = []
    for seed in range(10):
        torch.manual_seed(seed)
        decoder = clear_decoder(120)
        gains.append(
            means(generate(decoder, memory, BOXES, 6, Sampling(beams=3))) - means(generate(decoder, memory, BOXES, 6))
        )
    assert (torch.cat(gains) > 1e-4).float().mean() > 0.5


def test_the_log_probabilities_are_those_of_the_sequence(decoder, memory):
    """The caches follow the survivors: the whole sequence at once gives the same."""
    generated = generate(decoder, memory, BOXES, 6, Sampling(beams=3))
    inputs_BL = torch.cat([torch.full((3, 1), 10), generated.tokens_BL[:, :-1]], 1)
    log_probs = decoder(inputs_BL, memory).log_softmax(-1)
    again = log_probs.gather(2, generated.tokens_BL[..., None])[..., 0]
    torch.testing.assert_close(generated.log_probs_BL, again, rtol=0, atol=1e-5)
    torch.testing.assert_close(generated.class_log_probs_BNK, log_probs[:, 4::5, 101:104], rtol=0, atol=1e-5)


def test_an_image_does_not_depend_on_its_neighbours(decoder, memory):
    together = generate(decoder, memory, BOXES, 6, Sampling(beams=3)).tokens_BL
    for row in range(3):
        assert (
            generate(decoder, memory[row : row + 1], BOXES, 6, Sampling(beams=3)).tokens_BL[0] == together[row]
        ).all()


def test_one_object_is_found_exhaustively_where_only_its_first_token_matters():
    """With as many beams as first tokens, the best object is found: here greedy's first token leads astray."""

    class Astray(Babbler):
        def step(self, tokens_BL, positions_L, cache, slot, /):
            scores = torch.zeros(len(tokens_BL), self.tokens)
            if int(positions_L[-1]) == 0:
                scores[:, 104] = 0.5  # the best first token, after which nothing is likely
                return scores
            scores[:, 115] = 20.0 * (tokens_BL[:, -1] != 104)
            scores[:, 102] = 20.0
            return scores

    constraints = Vocabulary(12, 104, 120).token_constraints(3)
    greedy, beam = (generate(Astray(120, 0, 1.0), 1, constraints, 1, Sampling(beams=w)) for w in (1, 12))
    assert int(greedy.tokens_BL[0, 0]) == 104
    assert int(beam.tokens_BL[0, 0]) > 104
    assert beam.log_probs_BL.sum() > greedy.log_probs_BL.sum() + 2


def test_seeds_are_for_each_image(decoder, memory):
    """Beams draw nothing, so that the seeds change nothing."""
    seeded = generate(decoder, memory, BOXES, 3, Sampling(beams=2, seed=(1, 2, 3)))
    assert (seeded.tokens_BL == generate(decoder, memory, BOXES, 3, Sampling(beams=2)).tokens_BL).all()
    with pytest.raises(UserError, match="2 seeds for 3 images; give one for each, or one for all"):
        generate(decoder, memory, BOXES, 3, Sampling(beams=2, seed=(1, 2)))


def test_given_objects_come_first_in_all_beams(decoder, memory):
    given_BL = torch.tensor([104, 105, 106, 107, 101]).expand(3, -1)
    generated = generate(decoder, memory, BOXES, 3, Sampling(beams=2), given_BL)
    assert (generated.tokens_BL[:, :5] == given_BL).all()
    assert (generated.log_probs_BL[:, :5] == 0).all()

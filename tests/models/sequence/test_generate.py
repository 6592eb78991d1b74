"""Generation by a small decoder with clear choices, and by one with random logits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from boxwright.models.sequence.generate import generate
from boxwright.models.sequence.generation import Generation
from boxwright.models.sequence.sampling import Sampling
from boxwright.models.sequence.token_constraints import TokenConstraints
from boxwright.models.sequence.vocabulary import Vocabulary
from helpers.decoders import BOXES, Babbler, clear_decoder

FREE = TokenConstraints(10, 0, torch.ones(5, 60, dtype=torch.bool), torch.tensor([3, 4, 5]))


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    return clear_decoder(60)


@pytest.fixture
def memory():
    return torch.randn(3, 11, 24, generator=torch.Generator().manual_seed(1))


def objects_of(generated, slots=5):
    return generated.tokens_BL.unflatten(1, (-1, slots))


def in_steps(decoder, tokens, memory, prompt):
    cache = decoder.start(memory, tokens.shape[1])
    first = decoder.step(tokens[:, :prompt], torch.arange(prompt), cache)
    rest = [decoder.step(tokens[:, i : i + 1], torch.tensor([i]), cache) for i in range(prompt, tokens.shape[1])]
    return torch.stack([first, *rest], 1)


@pytest.mark.parametrize("prompt", [1, 2, 6, 19, 20])
def test_cached_steps_give_the_logits_of_the_whole_sequence(decoder, memory, prompt):
    tokens = torch.randint(0, 60, (3, 20))
    with torch.no_grad():
        whole = decoder(tokens, memory)[:, prompt - 1 :]
        torch.testing.assert_close(in_steps(decoder, tokens, memory, prompt), whole, rtol=0, atol=1e-5)


def test_a_row_of_a_batch_is_as_if_alone(decoder, memory):
    together = generate(decoder, memory, FREE, 6, Sampling(0.9))
    for row in range(3):
        alone = generate(decoder, memory[row : row + 1], FREE, 6, Sampling(0.9))
        assert (alone.tokens_BL[0] == together.tokens_BL[row]).all()
        torch.testing.assert_close(alone.log_probs_BL[0], together.log_probs_BL[row], rtol=0, atol=1e-5)


def test_attention_over_buckets_of_the_cache_changes_nothing(memory):
    """40 objects fill more than two buckets."""
    decoder = clear_decoder(60, 200)
    generated = generate(decoder, memory, FREE, 40)
    inputs_BL = torch.cat([torch.full((3, 1), 10), generated.tokens_BL[:, :-1]], 1)
    log_probs = decoder(inputs_BL, memory).log_softmax(-1)
    torch.testing.assert_close(generated.log_probs_BL, log_probs.max(-1).values, rtol=0, atol=2e-5)


def test_generated_tokens_are_the_most_probable_of_their_sequence(decoder, memory):
    generated = generate(decoder, memory, FREE, 4)
    inputs_BL = torch.cat([torch.full((3, 1), 10), generated.tokens_BL[:, :-1]], 1)
    log_probs = decoder(inputs_BL, memory).log_softmax(-1)
    assert (log_probs.argmax(-1) == generated.tokens_BL).all()
    torch.testing.assert_close(generated.log_probs_BL, log_probs.max(-1).values, rtol=0, atol=1e-5)
    torch.testing.assert_close(generated.class_log_probs_BNK, log_probs[:, 4::5, 3:6], rtol=0, atol=1e-5)


def test_several_sequences_of_one_image_share_its_memory(decoder, memory):
    tokens = torch.randint(0, 60, (6, 10))
    shared = decoder(tokens, memory)
    torch.testing.assert_close(shared, decoder(tokens, memory.repeat_interleave(2, 0)), rtol=0, atol=1e-5)


def test_no_token_attends_to_a_later_one(decoder, memory):
    tokens = torch.randint(0, 60, (3, 10))
    changed = tokens.clone()
    changed[:, 6:] = 0
    torch.testing.assert_close(decoder(tokens, memory)[:, :6], decoder(changed, memory)[:, :6])


def test_a_step_compiles_whole(decoder, memory):
    """No break of the graph: nothing waits for the device, no shape depends on data."""
    tokens = torch.randint(0, 60, (3, 8))
    step = torch.compile(decoder.step, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        cache = decoder.start(memory, 8)
        compiled = torch.stack([step(tokens[:, i : i + 1], torch.tensor([i]), cache) for i in range(8)], 1)
        torch.testing.assert_close(compiled, decoder(tokens, memory), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.9, end_bias=0.0, repeats=False)])
def test_an_object_compiles_whole(memory, sampling):
    decoder = clear_decoder(120)
    with torch.no_grad():
        drafts = [Generation(decoder, memory, BOXES, 3, sampling) for _ in range(2)]
        compiled = torch.compile(drafts[1].generate_object, fullgraph=True, backend="aot_eager")
        for number in range(2):
            drafts[0].generate_object(number)
            compiled(number)
    assert (drafts[0].tokens_BL == drafts[1].tokens_BL).all()
    torch.testing.assert_close(drafts[0].log_probs_BL, drafts[1].log_probs_BL, rtol=0, atol=1e-5)


SAMPLINGS = st.builds(
    Sampling,
    top_p=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    nucleus=st.sampled_from(["official", "standard"]),
    top_k=st.sampled_from([0, 1, 7]),
    temperature=st.sampled_from([0.1, 1.0, 10.0]),
    seed=st.integers(0, 2**40),
    end_bias=st.sampled_from([-torch.inf, -1.0, 0.0, 3.0]),
    repeats=st.booleans(),
    beams=st.just(1),
)
BEAMS = st.builds(
    Sampling, *map(st.just, Sampling()[:5]), st.sampled_from([-torch.inf, 0.0]), st.booleans(), st.integers(1, 3)
)


@settings(deadline=None, max_examples=150)
@given(
    SAMPLINGS | BEAMS, st.integers(0, 10**6), st.sampled_from([0.1, 1.0, 30.0]), st.lists(st.integers(0, 3), max_size=2)
)
def test_every_sequence_is_a_list_of_boxes(sampling, seed, scale, only):
    constraints = Vocabulary(12, 104, 120).token_constraints(4, only=only)
    generated = generate(Babbler(120, seed, scale), 3, constraints, 7, sampling)
    for objects in objects_of(generated):
        ended = (objects == 0).all(1)
        generated_objects = objects[: int((~ended).sum())]
        assert not ended.any() or (sampling.may_end and (objects[len(generated_objects) :] == 0).all())
        assert ((generated_objects[:, :4] >= 104) & (generated_objects[:, :4] < 116)).all()
        assert (generated_objects[:, 2:4] >= generated_objects[:, :2]).all()
        assert set(generated_objects[:, 4].tolist()) <= {30, *(101 + label for label in only)}
        if not sampling.repeats:
            assert len(generated_objects.unique(dim=0)) == len(generated_objects)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("top_p", [0.0, 1.0])
def test_without_repeats_all_possible_objects_can_be_generated(top_p, beams):
    """2 bins make 9 boxes, with 2 classes and noise 27 objects; dead ends would show."""
    if top_p and beams > 1:
        return
    constraints = Vocabulary(2, 104, 106).token_constraints(2)
    generated = objects_of(
        generate(Babbler(106, 3, 2.0), 4, constraints, 27, Sampling(top_p, repeats=False, beams=beams))
    )
    assert all(len(objects.unique(dim=0)) == 27 for objects in generated)
    with pytest.raises(AssertionError, match="no 28 different"):
        generate(Babbler(106, 3, 2.0), 4, constraints, 28, Sampling(top_p, repeats=False, beams=beams))


def test_given_objects_are_not_repeated():
    """27 objects of which 3 are given, two of these the same: 25 others are left."""
    constraints = Vocabulary(2, 104, 106).token_constraints(2)
    given_BL = torch.tensor([[104, 104, 105, 105, 101], [104, 104, 104, 105, 102], [104, 104, 105, 105, 101]])
    given_BL = given_BL.flatten().expand(2, -1)
    generated = objects_of(generate(Babbler(106, 3, 2.0), 2, constraints, 27, Sampling(1.0, repeats=False), given_BL))
    assert all(len(objects.unique(dim=0)) == 26 for objects in generated)


def test_draws_follow_the_seed(decoder, memory):
    first, again, other = (generate(decoder, memory, FREE, 4, Sampling(1.0, seed=seed)).tokens_BL for seed in (3, 3, 4))
    assert (first == again).all()
    assert (first != other).any()


def test_each_image_has_its_own_seed(decoder, memory):
    generated = generate(decoder, memory, FREE, 4, Sampling(1.0, seed=(5, 6, 7))).tokens_BL
    for row, seed in enumerate((5, 6, 7)):
        alone = generate(decoder, memory[row : row + 1], FREE, 4, Sampling(1.0, seed=seed)).tokens_BL
        assert (alone[0] == generated[row]).all()


def test_draws_follow_the_probabilities(decoder):
    memory = torch.zeros(1, 1, 24).expand(4000, -1, -1)
    generated = generate(decoder, memory, FREE, 1, Sampling(1.0, seed=tuple(range(4000))))
    expected = decoder(torch.tensor([[10]]), memory[:1])[0, 0].softmax(-1)
    counts = torch.bincount(generated.tokens_BL[:, 0], minlength=60) / 4000
    assert (counts - expected).abs().sum() / 2 < 0.08


def test_the_end_bias_goes_from_never_to_at_once(memory):
    decoder = clear_decoder(120)
    lengths = []
    for bias in (-torch.inf, -4.0, 0.0, 2.0, 100.0):
        generated = generate(decoder, memory, BOXES, 8, Sampling(1.0, end_bias=bias, seed=(1, 2, 3)))
        ended = generated.tokens_BL == 0
        lengths.append(int((~ended).sum()))
        assert (generated.class_log_probs_BNK.isneginf().all(-1) == ended[:, ::5]).all()
        assert (generated.log_probs_BL[:, 1:][ended[:, :-1]] == 0).all()
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] == 3 * 40
    assert lengths[-1] == 0


def test_rows_end_each_at_its_own_time(memory):
    """A row that has ended generates nothing more, and the others go on as if alone."""
    decoder = clear_decoder(120)
    sampling = Sampling(1.0, end_bias=2.0)
    generated = generate(decoder, memory, BOXES, 8, sampling).tokens_BL
    assert len({int((row > 0).sum()) for row in generated}) > 1
    for row in range(3):
        assert (generate(decoder, memory[row : row + 1], BOXES, 8, sampling).tokens_BL[0] == generated[row]).all()


def test_generation_stops_when_all_sequences_have_ended():
    class Counting(Babbler):
        steps = 0

        def step(self, *inputs):
            self.steps += 1
            return super().step(*inputs)

    decoder = Counting(120, 0, 1.0)
    generate(decoder, 3, BOXES, 50, Sampling(end_bias=1000.0))
    assert decoder.steps == 5


def test_given_objects_are_continued(decoder, memory):
    """A sequence whose first objects are given goes on as it did when they were its own."""
    own = generate(decoder, memory, FREE, 6)
    for counts in ((2, 2, 2), (0, 3, 1), (6, 1, 6)):
        given_BL = own.tokens_BL.clone()
        for row, count in enumerate(counts):
            given_BL[row, 5 * count :] = -1
        generated = generate(decoder, memory, FREE, 6, given_BL=given_BL)
        assert (generated.tokens_BL == own.tokens_BL).all()
        for row, count in enumerate(counts):
            assert (generated.log_probs_BL[row, : 5 * count] == 0).all()
            assert generated.class_log_probs_BNK[row, :count].isneginf().all()
            new = generated.log_probs_BL[row, 5 * count :]
            torch.testing.assert_close(new, own.log_probs_BL[row, 5 * count :], rtol=0, atol=1e-5)


def test_half_precision_generates_the_same_tokens(memory):
    """Where choices are clear; caches and masks have the decoder's own type."""
    decoder = clear_decoder(120)
    whole = generate(decoder, memory, BOXES, 2).tokens_BL
    half = generate(decoder.bfloat16(), memory.bfloat16(), BOXES, 2).tokens_BL
    assert (whole == half).float().mean() > 0.5

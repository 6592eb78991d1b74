import pix2seq_golden
import pytest
import torch

from boxwright.models.decoder import Decoder
from boxwright.models.decoding import generate
from boxwright.models.grammar import Grammar
from boxwright.models.sampling import Sampling, in_nucleus

GOLDEN = pix2seq_golden.tokens()
FREE = Grammar(10, 0, torch.ones(5, 60, dtype=torch.bool), torch.tensor([3, 4, 5]))


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    decoder = Decoder(
        tokens=60, length=40, slots=5, layers=2, dim=24, hidden=48, heads=3, dropout=0.1, drop_path=0.1
    ).eval()
    for table in (decoder.token_embedding, decoder.position_embedding):
        torch.nn.init.normal_(table, std=0.5)  # so that the choices are clear
    return decoder


@pytest.fixture
def memory():
    return torch.randn(3, 11, 24, generator=torch.Generator().manual_seed(1))


def test_cached_steps_score_as_the_whole_sentence_does(decoder, memory):
    tokens = torch.randint(0, 60, (3, 20))
    with torch.no_grad():
        whole = decoder(tokens, memory)
        cache = decoder.start(memory, 20)
        steps = [decoder.step(tokens[:, i : i + 1], torch.tensor([i]), cache) for i in range(20)]
    torch.testing.assert_close(torch.stack(steps, 1), whole, rtol=0, atol=1e-5)


def test_a_prompt_of_several_tokens_can_be_read_at_once(decoder, memory):
    tokens = torch.randint(0, 60, (3, 9))
    with torch.no_grad():
        cache = decoder.start(memory, 9)
        decoder.step(tokens[:, :8], torch.arange(8), cache)
        last = decoder.step(tokens[:, 8:], torch.tensor([8]), cache)
    torch.testing.assert_close(last, decoder(tokens, memory)[:, -1], rtol=0, atol=1e-5)


def test_generated_tokens_are_the_best_of_their_own_sentence(decoder, memory):
    said = generate(decoder, memory, FREE, 4, Sampling())
    read = torch.cat([torch.full((3, 1), 10), said.tokens_BL[:, :-1]], 1)
    scores = decoder(read, memory)
    assert (scores.argmax(-1) == said.tokens_BL).all()
    log_probs = scores.log_softmax(-1)
    torch.testing.assert_close(said.log_probs_BL, log_probs.max(-1).values, rtol=0, atol=1e-5)
    torch.testing.assert_close(said.class_log_probs_BNK, log_probs[:, 4::5, 3:6], rtol=0, atol=1e-5)


def test_several_sentences_of_one_image_share_its_memory(decoder, memory):
    tokens = torch.randint(0, 60, (6, 10))
    shared = decoder(tokens, memory)
    torch.testing.assert_close(shared, decoder(tokens, memory.repeat_interleave(2, 0)), rtol=0, atol=1e-5)


def test_no_token_sees_a_later_one(decoder, memory):
    tokens = torch.randint(0, 60, (3, 10))
    changed = tokens.clone()
    changed[:, 6:] = 0
    torch.testing.assert_close(decoder(tokens, memory)[:, :6], decoder(changed, memory)[:, :6])


@pytest.mark.parametrize("top_p", [0.0, 0.4, 1.0])
def test_the_grammar_holds_whatever_the_sampler(decoder, memory, top_p):
    grammar = torch.zeros(5, 60, dtype=torch.bool)
    grammar[:4, 20:50] = True
    grammar[4, 3:6] = True
    rules = Grammar(10, 0, grammar, torch.tensor([3, 4, 5]))
    tokens = generate(decoder, memory, rules, 6, Sampling(top_p, temperature=2.0)).tokens_BL.view(3, 6, 5)
    assert ((tokens[..., :4] >= 20) & (tokens[..., :4] < 50)).all()
    assert ((tokens[..., 4] >= 3) & (tokens[..., 4] < 6)).all()


def test_draws_follow_the_seed(decoder, memory):
    first, again, other = (
        generate(decoder, memory, FREE, 4, Sampling(1.0, 1.0, seed)).tokens_BL for seed in (3, 3, 4)
    )
    assert (first == again).all()
    assert (first != other).any()


def test_draws_follow_the_probabilities(decoder):
    memory = torch.zeros(1, 1, 24).expand(4000, -1, -1)
    said = generate(decoder, memory, FREE, 1, Sampling(1.0, seed=tuple(range(4000))))
    expected = decoder(torch.tensor([[10]]), memory[:1])[0, 0].softmax(-1)
    counts = torch.bincount(said.tokens_BL[:, 0], minlength=60) / 4000
    assert (counts - expected).abs().sum() / 2 < 0.08


@pytest.mark.parametrize("top_p", [0.05, 0.4, 0.9, 1e-06])
def test_the_nucleus_equals_the_official_one(top_p):
    kept = in_nucleus(GOLDEN["top_logits_in"], top_p).isfinite()
    assert (kept == GOLDEN[f"top_logits_k0_p{top_p}_keep"].bool()).all()

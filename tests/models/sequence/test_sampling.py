import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from boxwright.models.sequence.sampling import Sampling, choose, draws, in_nucleus, in_top
from helpers import pix2seq_golden

GOLDEN = pix2seq_golden.tokens()


@pytest.mark.parametrize(
    ("top_k", "top_p"), [(0, 0.05), (0, 0.4), (0, 0.9), (0, 1e-06), (0, 1.0), (1, 1.0), (5, 0.5), (5, 1.0)]
)
def test_filters_equal_the_official_ones(top_k, top_p):
    kept = GOLDEN["top_logits_in"]
    kept = in_top(kept, top_k) if top_k else kept
    kept = in_nucleus(kept, top_p) if top_p < 1 else kept
    assert (kept.isfinite() == GOLDEN[f"top_logits_k{top_k}_p{top_p}_keep"].bool()).all()


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20, unique=True), st.floats(0.01, 0.99))
def test_both_nuclei_by_their_definitions(weights, top_p):
    shares = torch.tensor(sorted(weights, reverse=True)) / sum(weights)
    official, standard = (
        int(in_nucleus(shares.log()[None], top_p, rule).isfinite().sum()) for rule in ("official", "standard")
    )
    eps = 1e-5
    assert official == 1 or shares[:official].sum() <= top_p + eps
    assert official == len(shares) or shares[: official + 1].sum() > top_p - eps
    assert shares[:standard].sum() >= top_p - eps
    assert standard == 1 or shares[: standard - 1].sum() < top_p + eps


@pytest.mark.parametrize("uniform", [0.0, 0.3, 0.999999, 1 - 2**-24])
def test_what_has_no_probability_is_never_drawn(uniform):
    scores = torch.full((1, 3000), -torch.inf)
    scores[0, [17, 2400]] = torch.tensor([0.0, -12.0])
    assert int(choose(scores, Sampling(1.0), torch.full((1, 1), uniform))) in (17, 2400)


def test_temperature_goes_from_greedy_to_uniform():
    scores, uniform = torch.tensor([[0.0, 1.0, 0.5]]).expand(300, -1), torch.rand(300, 1)
    assert (choose(scores, Sampling(1.0, temperature=1e-3), uniform) == 1).all()
    counts = torch.bincount(choose(scores, Sampling(1.0, temperature=1e3), uniform).flatten(), minlength=3)
    assert counts.min() > 60


def test_top_k_alone_draws():
    scores = torch.tensor([[0.0, 1.0, 0.9, -3.0]]).expand(300, -1)
    counts = torch.bincount(choose(scores, Sampling(top_k=2), torch.rand(300, 1)).flatten(), minlength=4)
    assert counts[[1, 2]].min() > 60
    assert counts[[0, 3]].max() == 0


def test_draws_of_a_row_know_nothing_of_the_others():
    assert (draws((4, 5, 6), 3, 10)[1] == draws(5, 1, 10)[0]).all()
    assert (draws(4, 2, 10)[0] == draws(4, 2, 10)[1]).all()

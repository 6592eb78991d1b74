"""The sides of boxes as distributions: they add up to one, and their tokens to the probability of the box."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from boxwright.models.sequence.mixture import Sides
from boxwright.models.sequence.patch_vocabulary import PatchVocabulary
from boxwright.models.sequence.side_distributions import box_log_probs, mixed, picked, side_tables
from boxwright.models.sequence.vocabulary import Vocabulary

VOCABULARIES = [
    Vocabulary(12, 104, 120),
    Vocabulary(1000, 1000, 3000),
    PatchVocabulary(3, 64, 96, 16, 4),
    PatchVocabulary(1, 50, 33, 16, 2),  # patches stick out
    PatchVocabulary(2, 20, 20, 32, 1),
]
vocabularies = pytest.mark.parametrize("vocabulary", VOCABULARIES, ids=str)


def sources(seed, boxes=5, far=0.3):
    """Boxes, some sides of which lie outside of the canvas, and spreads from a bin to the canvas."""
    generator = torch.Generator().manual_seed(seed)
    boxes_14 = torch.rand(1, boxes, 4, generator=generator) * (1 + 2 * far) - far
    return boxes_14, torch.rand(1, boxes, 4, generator=generator).mul(7).neg().exp() + 5e-4


def tokens(vocabulary, seed, objects=3):
    """Boxes of tokens, valid ones."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(1, objects, 2, 2, generator=generator).sort(2).values.flatten(2)
    return vocabulary.coordinate_tokens(corners)


@vocabularies
@given(st.integers(0, 1000), st.sampled_from([0.0, 0.3, 100.0]))
@settings(max_examples=15, deadline=None)
def test_tables_add_up_to_one(vocabulary, seed, far):
    """Wherever the sides are."""
    for table in side_tables(*sources(seed, far=far), vocabulary.edges()):
        assert (table > 0).all()
        torch.testing.assert_close(table.sum(-1), torch.ones_like(table[..., 0]), atol=2e-4, rtol=0)


@pytest.mark.parametrize("spread", [1e-30, 1e-3, 1.0, 1e30])
@pytest.mark.parametrize("at", [-1e6, -0.5, 0.0, 0.5, 1.0, 1.5, 1e6])
def test_any_side_has_a_distribution_and_gradients(at, spread):
    boxes, spreads = (torch.full((1, 1, 4), value, requires_grad=True) for value in (at, spread + 5e-4))
    edges = VOCABULARIES[0].edges()
    for table in side_tables(boxes, spreads, edges):
        torch.testing.assert_close(table.sum(), torch.tensor(1.0), atol=2e-4, rtol=0)
    box_log_probs(boxes, spreads, torch.tensor([[[0, 5, 11, 11]]]), edges).sum().backward()
    assert boxes.grad.isfinite().all()
    assert spreads.grad.isfinite().all()


def test_a_side_outside_of_the_canvas_means_its_edge():
    for at, edge in ((-0.3, 0), (1.4, 11)):
        tables = side_tables(torch.full((1, 1, 4), at), torch.full((1, 1, 4), 0.01), VOCABULARIES[0].edges())
        for table in tables:
            assert table.argmax() == edge
            assert table.max() > 0.9


def test_a_side_that_is_known_is_in_its_bin():
    boxes = torch.tensor([[[0.2, 0.1, 0.7, 0.9]]])
    for vocabulary in VOCABULARIES:
        bins = vocabulary.side_bins(vocabulary.coordinate_tokens(boxes))
        tables = side_tables(
            vocabulary.boxes(vocabulary.coordinate_tokens(boxes)), boxes * 0 + 1e-5, vocabulary.edges()
        )
        assert [int(table.argmax()) for table in tables] == bins.flatten().tolist()


@vocabularies
def test_every_bin_lies_between_its_edges(vocabulary):
    """A box of tokens lies in the bins that the tokens mean."""
    ids = tokens(vocabulary, 0, 200)
    bins, boxes = vocabulary.side_bins(ids), vocabulary.boxes(ids)
    for side, edges_X in enumerate([*vocabulary.edges()] * 2):
        assert (edges_X.diff() > 0).all()
        low, high = edges_X[bins[..., side]], edges_X[bins[..., side] + 1]
        at = boxes[..., side].clamp(max=float(edges_X[-1]))
        inside = (at >= low - 1e-6) & (at <= high + 1e-6)
        assert (inside | ((at == 1) & (low > 1 - 1e-6))).all()  # a subcell beyond the canvas is at its edge


@vocabularies
@given(st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_the_tokens_of_a_box_multiply_to_its_probability(vocabulary, seed):
    """In each source, token after token as over the sides at once."""
    boxes, spreads = sources(seed)
    own_boxes, own_spreads = (x[:, :3].transpose(0, 1) for x in sources(seed + 1))  # one for each object
    ids, edges = tokens(vocabulary, seed), vocabulary.edges()
    sides = Sides(side_tables(boxes, spreads, edges), side_tables(own_boxes, own_spreads, edges), vocabulary)
    evidence = sum(sides.evidence(slot, ids) for slot in range(4))
    whole_BCM = box_log_probs(boxes, spreads, vocabulary.side_bins(ids), edges)
    torch.testing.assert_close(evidence[..., :-1], whole_BCM.mT, atol=2e-3, rtol=1e-3)
    own = box_log_probs(own_boxes, own_spreads, vocabulary.side_bins(ids).transpose(0, 1), edges)
    torch.testing.assert_close(evidence[0, :, -1], own[:, 0, 0], atol=2e-3, rtol=1e-3)


@vocabularies
@given(st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_the_next_token_of_a_mixture_adds_up_to_one_and_is_what_its_sources_say(vocabulary, seed):
    boxes, spreads = sources(seed)
    own = sources(seed + 1, 3)
    ids, edges = tokens(vocabulary, seed), vocabulary.edges()
    own_tables = side_tables(*(x.transpose(0, 1) for x in own), edges)
    sides = Sides(side_tables(boxes, spreads, edges), own_tables, vocabulary)
    log_weights = torch.randn(1, 3, 6, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)
    for slot in range(4):
        probabilities = sides.coordinate_logits(slot, log_weights, ids).exp()
        assert probabilities.shape == (1, 3, vocabulary.size)
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(1, 3), atol=5e-4, rtol=0)
        chosen = probabilities.gather(2, ids[..., slot, None])[..., 0].log()
        after = log_weights + sides.evidence(slot, ids)
        torch.testing.assert_close(chosen, after.logsumexp(-1) - log_weights.logsumexp(-1), atol=2e-3, rtol=1e-3)
        log_weights = after


def test_factors_are_counted_row_by_row():
    generator = torch.Generator().manual_seed(0)
    rows, columns = (torch.rand(2, 5, n, generator=generator) for n in (3, 4))
    weights = torch.rand(2, 6, 5, generator=generator)
    every = (rows[..., :, None] * columns[..., None, :]).flatten(-2)
    torch.testing.assert_close(mixed(weights, (rows, columns)), mixed(weights, (every,)))
    each = every[:, None].expand(-1, 6, -1, -1)
    torch.testing.assert_close(mixed(weights, (each,)), mixed(weights, (every,)))
    index = torch.randint(12, (2, 6), generator=generator)
    torch.testing.assert_close(picked((rows, columns), index), picked((every,), index))
    torch.testing.assert_close(picked((each,), index), picked((every,), index))
    torch.testing.assert_close(picked((every,), index)[1, 3], every[1, :, index[1, 3]])

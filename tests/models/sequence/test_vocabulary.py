import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from boxwright.models.sequence.vocabulary import NOISE, Vocabulary
from helpers import pix2seq_golden

GOLDEN = pix2seq_golden.tokens()


@pytest.mark.parametrize("bins", [50, 1000, 2000])
def test_bins_equal_the_official_ones(bins):
    vocabulary = Vocabulary(bins, 1000, 5000)
    assert (vocabulary.quantise(GOLDEN["quant_in"]) == GOLDEN[f"quant_{bins}"]).all()


@pytest.mark.parametrize("bins", [50, 1000])
def test_values_equal_the_official_ones(bins):
    values = Vocabulary(bins, 1000, 5000).dequantise(GOLDEN[f"dequant_in_{bins}"])
    torch.testing.assert_close(values, GOLDEN[f"dequant_{bins}"], rtol=0, atol=0)


def test_half_a_bin_goes_to_the_even_one():
    assert Vocabulary().quantise(torch.tensor([0.5, 0.25, 0.75])).tolist() == [500, 250, 749]


@given(st.lists(st.floats(0, 1, width=32), min_size=1), st.integers(2, 3000))
def test_a_coordinate_comes_back_within_half_a_bin(values, bins):
    vocabulary, given_values = Vocabulary(bins, 1000, 5000), torch.tensor(values)
    back = vocabulary.dequantise(vocabulary.quantise(given_values))
    assert ((back - given_values).abs() <= 0.5 / (bins - 1) + 1e-6).all()


@given(st.integers(2, 3000))
def test_every_bin_comes_back_exactly(bins):
    vocabulary = Vocabulary(bins, 1000, 5000)
    assert (vocabulary.quantise(vocabulary.dequantise(torch.arange(bins))) == torch.arange(bins)).all()


@given(st.lists(st.tuples(*[st.floats(-0.5, 1.5, width=32)] * 4), min_size=1))
def test_boxes_come_back_clipped_and_in_their_order(boxes):
    vocabulary, given_boxes = Vocabulary(), torch.tensor(boxes)
    tokens = vocabulary.coordinate_tokens(given_boxes)
    assert ((tokens >= 1000) & (tokens < 2000)).all()
    torch.testing.assert_close(vocabulary.boxes(tokens), given_boxes.clamp(0, 1), rtol=0, atol=0.51 / 999)


def test_a_box_is_written_top_left_bottom_right():
    assert Vocabulary().coordinate_tokens(torch.tensor([0.2, 0.1, 0.75, 0.5])).tolist() == [1100, 1200, 1500, 1749]


def test_the_constraints_are_coordinates_then_a_class_or_noise():
    vocabulary = Vocabulary(50, 120, 180)
    allowed = vocabulary.token_constraints(3).allowed_PV
    assert allowed.shape == (5, 180)
    assert all(row.nonzero().flatten().tolist() == list(range(120, 170)) for row in allowed[:4])
    assert allowed[4].nonzero().flatten().tolist() == [NOISE, *vocabulary.class_tokens(torch.arange(3)).tolist()]


def test_the_constraints_of_some_classes():
    vocabulary = Vocabulary(50, 120, 180)
    constraints = vocabulary.token_constraints(3, only=[1])
    assert constraints.allowed_PV[4].nonzero().flatten().tolist() == [
        NOISE,
        int(vocabulary.class_tokens(torch.tensor(1))),
    ]
    assert len(constraints.class_tokens_K) == 3
    assert vocabulary.token_constraints(3, free=True).allowed_PV.all()


def test_a_vocabulary_that_overlaps_itself_is_refused():
    with pytest.raises(AssertionError):
        Vocabulary(bins=1000, first_coordinate=1000, size=1999)


def test_classes_can_have_labels_with_holes():
    vocabulary = Vocabulary(class_ids=(1, 13, 90))
    assert vocabulary.class_tokens(torch.tensor([[2, 0], [1, 1]])).tolist() == [[190, 101], [113, 113]]
    allowed_V = vocabulary.token_constraints(3).allowed_PV[4]
    assert allowed_V.nonzero().flatten().tolist() == [NOISE, 101, 113, 190]

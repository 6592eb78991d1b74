import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from boxwright.models.sequence.patch_vocabulary import PatchVocabulary

SIDES = st.integers(16, 200)
CORNERS = st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4)


def boxes_of(numbers):
    (x1, x2), (y1, y2) = sorted(numbers[:2]), sorted(numbers[2:])
    return torch.tensor([[x1, y1, x2, y2]])


@given(CORNERS, SIDES, SIDES, st.sampled_from([8, 16]), st.sampled_from([0, 1, 8]))
def test_a_box_comes_back_within_a_subcell(numbers, height, width, patch, fine):
    vocabulary, box = PatchVocabulary(3, height, width, patch, fine), boxes_of(numbers)
    back = vocabulary.boxes(vocabulary.coordinate_tokens(box))
    off = ((back - box) * torch.tensor([width, height, width, height])).abs()
    assert off.max() <= (patch / fine / 2 if fine else patch) + 1e-2
    assert (back[:, 2:] >= back[:, :2]).all() or fine > 1
    assert ((back >= 0) & (back <= 1)).all()


@given(CORNERS, SIDES, SIDES, st.sampled_from([0, 8]))
def test_decoded_boxes_are_encoded_as_the_same_tokens(numbers, height, width, fine):
    """Boxes of tokens are encoded as the same tokens."""
    vocabulary = PatchVocabulary(3, height - height % 16, width - width % 16, 16, fine)
    tokens = vocabulary.coordinate_tokens(boxes_of(numbers))
    box = vocabulary.boxes(tokens)
    if (box[:, 2:] > box[:, :2]).all():
        assert torch.equal(vocabulary.coordinate_tokens(box), tokens)


@pytest.mark.parametrize("fine", [0, 8])
def test_a_box_without_offsets_is_covered_by_its_patches(fine):
    vocabulary = PatchVocabulary(3, 96, 64, 16, fine)
    whole = vocabulary.coordinate_tokens(torch.tensor([[0, 0, 1, 1.0]]))
    first, last = vocabulary.first_patch, vocabulary.size - 1
    assert whole.tolist() == ([[first, last]] if not fine else [[first, first - 64, last, first - 1]])


def test_edges_between_patches_belong_to_the_inside_of_the_box():
    vocabulary = PatchVocabulary(1, 64, 64, 16, 0)
    ids = (
        vocabulary.coordinate_tokens(torch.tensor([[16, 16, 32, 48.0], [16, 16, 16, 16]]) / 64) - vocabulary.first_patch
    )
    assert ids.tolist() == [[5, 9], [5, 5]]  # an empty box on a corner stays in one patch


def test_two_boxes_in_one_patch_differ_in_their_offsets():
    small = torch.tensor([[1, 1, 5, 5], [8, 9, 14, 15.0]]) / 64
    coarse, fine = (PatchVocabulary(1, 64, 64, 16, n) for n in (0, 8))
    assert torch.equal(*coarse.coordinate_tokens(small))
    back = fine.boxes(fine.coordinate_tokens(small)) * 64
    torch.testing.assert_close(back, small * 64, atol=1.0, rtol=0)


@pytest.mark.parametrize("noise", [True, False])
@pytest.mark.parametrize("fine", [0, 8])
def test_the_constraints_allow_every_box_and_no_reversed_one(noise, fine):
    vocabulary = PatchVocabulary(3, 96, 64, 16, fine)
    constraints = vocabulary.token_constraints(noise)
    boxes = torch.rand(50, 2, 2)
    boxes = torch.cat([boxes.amin(1), boxes.amax(1)], -1)
    tokens = vocabulary.coordinate_tokens(boxes)
    corners = constraints.allowed_PV[:-1] if noise else constraints.allowed_PV[1:]
    assert all(bool(row[ids].all()) for row, ids in zip(corners, tokens.T, strict=True))
    step = 2 if fine else 1
    first, second = tokens[:, :1], tokens[:, step]
    assert not constraints.below(first).gather(1, second[:, None]).any()
    left = (tokens[:, step] - vocabulary.first_patch) % 4 > 0
    if left.any():  # the patch to the left of the first corner's
        turned = constraints.below(second[left, None]).gather(1, second[left, None] - 1)
        assert turned.all()

import itertools

import torch

from boxwright.models.losses.hungarian import match


def test_assignment_is_the_cheapest_of_all():
    cost = torch.rand(3, 3, 5, generator=torch.Generator().manual_seed(0))
    matched = match(cost, torch.ones(3, 3, dtype=torch.bool))
    for image in range(3):
        best = min(sum(cost[image, n, q] for n, q in enumerate(p)) for p in itertools.permutations(range(5), 3))
        assert torch.isclose(sum(cost[image, n, matched[image, n]] for n in range(3)), best)
        assert len(set(matched[image].tolist())) == 3


def test_padding_rows_and_surplus_objects_get_nothing():
    valid = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    matched = match(torch.rand(3, 3, 2), valid)
    assert matched[0, 1] == -1
    assert (matched[1] == -1).all()
    assert sorted(matched[2].tolist()) == [-1, 0, 1]


def test_not_a_number_costs_are_avoided():
    cost = torch.tensor([[[float("nan"), 3.0, float("inf")]]])
    assert match(cost, torch.tensor([[True]])).item() == 1

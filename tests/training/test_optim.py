from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from boxwright.config import Optim, UserError, fill_in
from boxwright.models import zoo
from boxwright.training.optim import FLOOR, check, make_optimizer, moving_average, rate_factor, set_rate

SETTINGS = fill_in(Optim(warmup=0.1, hold=0.4, lr=1e-3, backbone_factor=0.1, weight_decay=0.05), Optim())


def test_warm_up_then_constant_then_cosine_to_one_percent():
    rates = [rate_factor(step, 100, SETTINGS) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:40] == [1.0] * 31
    assert all(b < a for a, b in pairwise(rates[40:]))
    assert rates[-1] == pytest.approx(FLOOR)


@given(st.integers(1, 500), st.floats(0, 1), st.floats(0, 1))
def test_rates_stay_between_nothing_and_the_peak(total, warmup, hold):
    settings = fill_in(Optim(warmup=warmup, hold=hold), SETTINGS)
    assert all(0 < rate_factor(step, total, settings) <= 1 for step in range(total))


def test_groups_split_backbone_and_decay():
    detector = zoo.build("dense", "nano", ("a",), backbone="test_efficientnet", pretrained=False)
    optimizer = make_optimizer(detector, SETTINGS)
    kinds = {(round(g["peak"], 6), g["weight_decay"]) for g in optimizer.param_groups}
    assert kinds == {(1e-3, 0.05), (1e-3, 0.0), (1e-4, 0.05), (1e-4, 0.0)}
    count = sum(len(g["params"]) for g in optimizer.param_groups)
    assert count == sum(p.requires_grad for p in detector.parameters())
    assert all(p.ndim > 1 for g in optimizer.param_groups if g["weight_decay"] for p in g["params"])
    set_rate(optimizer, 0.5)
    assert {round(g["lr"], 6) for g in optimizer.param_groups} == {5e-4, 5e-5}


def test_the_average_follows_quickly_at_first_and_slowly_later():
    layer = torch.nn.Linear(1, 1, bias=False)
    average = moving_average(layer, 0.9)
    torch.nn.init.constant_(layer.weight, 0.0)
    average.update_parameters(layer)
    torch.nn.init.constant_(layer.weight, 1.0)
    seen = []
    for _ in range(200):
        average.update_parameters(layer)
        seen.append(average.module.weight.item())
    assert seen[0] == pytest.approx(1 - 2 / 11)
    assert seen[-1] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [{"lr": -1.0}, {"lr": float("nan")}, {"warmup": 1.5}, {"hold": -0.1}, {"ema": 2.0}, {"accumulate": 0},
     {"clip": -1.0}, {"patience": -1}, {"weight_decay": -0.1}, {"backbone_factor": -1.0}],
)  # fmt: skip
def test_settings_outside_their_range_are_refused(wrong):
    settings = zoo.recipe("dense").optim
    check(settings)
    with pytest.raises(UserError, match=f"--optim.{next(iter(wrong))} must be"):
        check(fill_in(Optim(**wrong), settings))

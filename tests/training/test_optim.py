from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from boxwright.config import Optim, UserError, fill_in
from boxwright.models import registry
from boxwright.training import recipes
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


def test_the_linear_schedule_begins_at_nothing_and_descends_to_one_percent():
    settings = fill_in(Optim(schedule="linear", hold=0.0), SETTINGS)
    rates = [rate_factor(step, 100, settings) for step in range(101)]
    assert rates[:11] == pytest.approx([step / 10 for step in range(11)])
    assert rates[10::30] == pytest.approx([1.0, 0.67, 0.34, 0.01])
    assert rate_factor(0, 100, fill_in(Optim(warmup=0.0), settings)) == 1.0


@pytest.mark.parametrize(("rule", "decayed"), [("torch", False), ("keras-kernels", False), ("keras", True)])
def test_rules_differ_in_what_decays(rule, decayed):
    layer = torch.nn.ParameterDict({name: torch.nn.Parameter(torch.ones(2, 2)) for name in ("kernel", "embedding")})
    layer.backbone_parameters = list
    optimizer = make_optimizer(layer, fill_in(Optim(rule=rule), SETTINGS))
    for parameter in layer.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert (layer["kernel"] < 1).all()
    assert bool((layer["embedding"] < 1).all()) == decayed


def test_keras_adds_epsilon_before_the_bias_is_corrected():
    moved = {}
    for rule in ("torch", "keras-kernels"):
        layer = torch.nn.ParameterDict({"kernel": torch.nn.Parameter(torch.zeros(1, 1))})
        layer.backbone_parameters = list
        optimizer = make_optimizer(layer, fill_in(Optim(rule=rule, weight_decay=0.0), SETTINGS))
        layer["kernel"].grad = torch.full((1, 1), 1e-8)
        optimizer.step()
        moved[rule] = -layer["kernel"].item() / 1e-3
    assert moved["torch"] == pytest.approx(1 / (1 + 1), rel=1e-3)
    assert moved["keras-kernels"] == pytest.approx(1 / (1 + 1 / 0.001**0.5), rel=1e-3)


def test_groups_split_backbone_and_decay():
    detector = registry.build("dense", "nano", ("a",), backbone="test_efficientnet", pretrained=False)
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
     {"clip": -1.0}, {"patience": -1}, {"beta2": 1.0}, {"rule": "adam"}, {"schedule": "step"},
     {"weight_decay": -0.1}, {"backbone_factor": -1.0}],
)  # fmt: skip
def test_settings_outside_their_range_are_refused(wrong):
    settings = recipes.recipe("dense").optim
    check(settings)
    with pytest.raises(UserError, match=f"--optim.{next(iter(wrong))} must be"):
        check(fill_in(Optim(**wrong), settings))

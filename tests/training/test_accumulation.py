"""A step of several batches whose gradients are added up is a step of one large batch."""

from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from boxwright.config import Augment
from boxwright.training.fabric import make_fabric
from boxwright.training.loop import Loop
from boxwright.training.recipes import recipe
from helpers.divided_batches import CONSTANTS, MODELS, batch_of_four, freeze_batch_norm, rows
from helpers.untrained import untrained


def step(model: str, parts: int) -> tuple[dict[str, float], dict[str, Tensor], dict[str, Tensor]]:
    """Losses, gradients and buffers after a step over a batch of four in so many parts."""
    fabric, _ = make_fabric("cpu", "32-true", 1, 1)
    optim = replace(recipe(model).optim, accumulate=parts, clip=0.0, ema=0.0)
    config = SimpleNamespace(epochs=1, batch_size=4 // parts, augment=Augment(views=1), optim=optim, seed=0)
    loop = Loop(fabric, untrained(model), config, range(4), (range(0), []))
    loop.model.train()
    freeze_batch_norm(loop.detector)
    gradients: dict[str, Tensor] = {}

    def keep_gradients() -> None:
        named = loop.detector.named_parameters()
        gradients.update({name: p.grad.clone() for name, p in named if p.grad is not None})

    loop.optimizer = SimpleNamespace(
        param_groups=loop.optimizer.param_groups, step=keep_gradients, zero_grad=lambda: None
    )
    size, whole = 4 // parts, batch_of_four()
    whole.sizes_B2[:] = (
        64  # canvases are cut to what a batch needs, so that a part of small images may have smaller ones
    )
    batches = [rows(whole, slice(size * n, size * n + size)) for n in range(parts)]
    with patch.multiple(torch, **CONSTANTS):
        losses = loop._step(iter(batches))
    return losses, gradients, dict(loop.detector.named_buffers())


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("parts", [2, 4])
def test_losses_and_gradients_are_those_of_the_whole_batch(model, parts):
    losses, gradients, buffers = step(model, 1)
    added_losses, added, added_buffers = step(model, parts)
    assert added_losses == pytest.approx(losses, rel=1e-5, abs=1e-5)
    assert list(added) == list(gradients)
    torch.testing.assert_close(added, gradients, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(added_buffers, buffers)

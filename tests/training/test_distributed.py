"""Two processes with half of a batch each compute what one process computes with the whole."""

from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from boxwright.types import Batch, Detector
from helpers.divided_batches import CONSTANTS, MODELS, batch_of_four, freeze_batch_norm, rows
from helpers.untrained import untrained

WORLD = 2


def step(detector: Detector, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses and gradients."""
    detector.train()
    freeze_batch_norm(detector)
    with patch.multiple(torch, **CONSTANTS):
        losses = detector.loss(detector(batch.images_BCHW, batch.sizes_B2, batch), batch)
    torch.stack(list(losses.values())).sum().backward()
    gradients = {name: p.grad for name, p in detector.named_parameters() if p.grad is not None}
    return {name: value.detach() for name, value in losses.items()}, gradients


def work(rank: int, folder: Path) -> None:
    """One process: its half of the batch, and what all processes have on average."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=WORLD)
    for model in MODELS:
        losses, gradients = step(untrained(model), rows(batch_of_four(), slice(2 * rank, 2 * rank + 2)))
        for value in (*losses.values(), *gradients.values()):
            dist.all_reduce(value)
            value /= WORLD
        if rank == 0:
            torch.save((losses, gradients), folder / f"{model}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    mp.spawn(work, (folder,), WORLD)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_losses_and_gradients_are_those_of_one_process(model, two_processes):
    losses, gradients = step(untrained(model), batch_of_four())
    shared_losses, shared = torch.load(two_processes / f"{model}.pt")
    torch.testing.assert_close(shared_losses, losses, rtol=1e-5, atol=1e-5)
    assert list(shared) == list(gradients)
    torch.testing.assert_close(shared, gradients, rtol=1e-3, atol=1e-5)

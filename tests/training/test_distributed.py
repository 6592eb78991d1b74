"""Two processes with half of a batch each compute what one process computes with the whole."""

from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from boxwright.types import Batch, Detector
from helpers.untrained import untrained

MODELS = ["dense", "deformable", "detr", "pix2seq", "patchseq"]
WORLD = 2


def batch_of_four() -> Batch:
    """Noise with 0 to 3 objects an image, so that the halves differ in number."""
    generator = torch.Generator().manual_seed(0)
    counts_B1 = torch.tensor([[3], [0], [1], [2]])
    corner_BN2 = torch.rand(4, 3, 2, generator=generator) * 0.5
    side_BN2 = torch.rand(4, 3, 2, generator=generator) * 0.3 + 0.1
    return Batch(
        images_BCHW=torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=generator),
        sizes_B2=torch.tensor([[64, 64], [48, 64], [64, 48], [64, 64]]),
        originals_B2=torch.full((4, 2), 64),
        boxes_BN4=torch.cat([corner_BN2, corner_BN2 + side_BN2], -1),
        labels_BN=torch.randint(0, 2, (4, 3), generator=generator),
        valid_BN=torch.arange(3) < counts_B1,
        index_B=torch.arange(4),
    )


# Instead of random numbers, which follow from the position of an image in the batch of its process:
CONSTANTS = {
    "rand": lambda shape, device=None: torch.full(shape, 0.3, device=device),
    "rand_like": lambda x, dtype=None: torch.full_like(x, 0.3, dtype=dtype),
    "randn_like": lambda x: torch.full_like(x, 0.1),
    "randint_like": lambda x, *bounds: torch.full_like(x, bounds[0] if len(bounds) > 1 else 0),
    "multinomial": lambda chances, count: chances.topk(count).indices,
}


def rows(batch: Batch, part: slice) -> Batch:
    return Batch(**{name: value[part] for name, value in vars(batch).items()})


def step(detector: Detector, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses and gradients; batch norm is frozen, as in a backbone that was pretrained."""
    detector.train()
    for module in detector.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
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

"""Losses, gradients and predictions of each detector are those of an earlier version."""

import hashlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

import boxwright
from boxwright.types import Batch, Detector
from helpers.frozen import EXPECTED, LAST_BITS, unpack

DETECTORS = ["dense", "detr", "deformable", "pix2seq", "patchseq", "replication", "small"]


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_computes_what_it_did(name, tmp_path):
    measured, expected = measure(unpack(f"{name}.safetensors", tmp_path)), EXPECTED[name]
    assert measured["state"] == expected["state"]
    assert list(measured["losses"]) == list(expected["losses"])
    for what in ("losses", "evaluated", "gradient"):
        torch.testing.assert_close(_tensors(measured[what]), _tensors(expected[what]), **LAST_BITS)
    assert measured["labels"] == expected["labels"]
    for what in ("scores", "boxes", "likelihood"):
        torch.testing.assert_close(torch.tensor(measured[what]), torch.tensor(expected[what]), **LAST_BITS)


def measure(weights: Path) -> dict[str, Any]:
    """All that is held fixed of a detector, as it fits into JSON."""
    torch.manual_seed(0)
    detector = boxwright.load(weights, device="cpu").detector
    batch = make_batch(detector.image_size)
    state = [f"{key} {tuple(value.shape)} {value.dtype}" for key, value in detector.state_dict().items()]
    with torch.no_grad():
        outputs = detector(batch.images_BCHW, batch.sizes_B2)
        found = detector.decode(outputs)
        torch.manual_seed(1)
        evaluated = dict(detector.loss(_taught(detector, batch), batch))
        likelihood = detector.likelihood(outputs, batch)
    detector.train()
    torch.manual_seed(2)
    losses = dict(detector.loss(_taught(detector, batch), batch))
    torch.stack(list(losses.values())).sum().backward()
    gradients = [p.grad.double().square().sum() for p in detector.parameters() if p.grad is not None]
    return {
        "state": hashlib.sha256("\n".join(sorted(state)).encode()).hexdigest(),
        "losses": {key: value.item() for key, value in losses.items()},
        "evaluated": {key: value.item() for key, value in evaluated.items()},
        "gradient": {"norm": torch.stack(gradients).sum().sqrt().item(), "parameters": len(gradients)},
        "labels": found.labels_BD[:, :8].tolist(),
        "scores": found.scores_BD[:, :8].tolist(),
        "boxes": found.boxes_BD4[:, :8].tolist(),
        "likelihood": [] if likelihood is None else [part.tolist() for part in likelihood],
    }


def make_batch(side: int) -> Batch:
    """Two images of stripes, one with three objects, one (smaller than its canvas) with one; no random numbers."""
    pixel = torch.arange(2 * 3 * side * side)
    images_BCHW = (pixel * 37 + (pixel // 64) ** 2 * 11 + pixel // 4096 * 59) % 256
    boxes_BN4 = torch.zeros(2, 3, 4)
    boxes_BN4[0] = torch.tensor([[0.1, 0.1, 0.4, 0.5], [0.5, 0.5, 0.95, 0.9], [0.6, 0.05, 0.76, 0.2]])
    boxes_BN4[1, 0] = torch.tensor([0.2, 0.1, 0.7, 0.6])
    return Batch(
        images_BCHW=images_BCHW.view(2, 3, side, side).to(torch.uint8),
        sizes_B2=torch.tensor([[side, side], [side * 3 // 4, side]]),
        originals_B2=torch.tensor([[192, 192], [96, 128]]),
        boxes_BN4=boxes_BN4,
        labels_BN=torch.tensor([[0, 1, 2], [1, 0, 0]]),
        valid_BN=torch.tensor([[True, True, True], [True, False, False]]),
        index_B=torch.arange(2),
    )


def _taught(detector: Detector, batch: Batch) -> Any:
    """What the loss is computed from; a detector may want the targets for it already in its forward pass."""
    wanted = "targets" in inspect.signature(detector.forward).parameters
    return detector(batch.images_BCHW, batch.sizes_B2, *([batch] if wanted else []))


def _tensors(numbers: dict[str, float]) -> dict[str, torch.Tensor]:
    return {key: torch.tensor(value, dtype=torch.float) for key, value in numbers.items()}

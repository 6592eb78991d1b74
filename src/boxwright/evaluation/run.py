"""Run a detector over all images of a cache: its detections, and for validation its losses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from boxwright.data.loader import eval_batches
from boxwright.models.losses.normaliser import without_synchronisation
from boxwright.types import Batch, Detections, Detector, Predictions, evaluating

if TYPE_CHECKING:
    from boxwright.data.loader import BatchSource

MAX_DETECTIONS = 100  # per image; COCO's numbers count no more


def detect(
    detector: Detector,
    cache: BatchSource,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world: int = 1,
) -> list[Detections]:
    """The detections of each image of the cache, in its order, in original pixels, at most `MAX_DETECTIONS` per image.

    Args:
        detector: on `device`; it is left in the mode (training or evaluation) it was in.
        cache: the images.
        batch_size: images per batch.
        device: where to compute.
        rank: of this process; it gets the images that `eval_batches` deals to it.
        world: number of processes.
    """
    return [found for batch in detect_batches(detector, cache, batch_size, device, rank, world) for found in batch]


@dataclass
class Validation:
    """Detections of images, and how far they are from the annotations.

    Attributes:
        detections: of each image, as from `detect`.
        losses: the sum of each loss over the images; every image of a batch counts with the loss of its batch.
        likelihood: log-likelihood of the annotated objects; 0 for a detector that doesn't generate tokens.
        tokens: how many tokens `likelihood` is the sum of.
    """

    detections: list[Detections] = field(default_factory=list)
    losses: dict[str, float] = field(default_factory=dict)
    likelihood: float = 0.0
    tokens: float = 0.0


def validate(
    detector: Detector, cache: BatchSource, batch_size: int, device: torch.device | str, rank: int = 0, world: int = 1
) -> Validation:
    """Detections, losses and likelihood; a loss that needs random numbers takes them from torch's global generator.

    The arguments are those of `detect`.
    """
    total = Validation()
    with evaluating(detector), torch.inference_mode(), without_synchronisation():
        for batch in eval_batches(cache, batch_size, device=device, rank=rank, world=world):
            outputs = detector(batch.images_BCHW, batch.sizes_B2, batch)
            total.detections += best_of(detector.decode(outputs)).to_detections(batch, detector.names)
            losses = detector.loss(outputs, batch)
            values = torch.stack(list(losses.values())).tolist()
            for name, value in zip(losses, values, strict=True):
                total.losses[name] = total.losses.get(name, 0.0) + value * len(batch)
            likelihood = detector.likelihood(outputs, batch)
            if likelihood is not None:
                log_likelihoods_B, tokens_B = likelihood
                total.likelihood += float(log_likelihoods_B.double().sum())
                total.tokens += float(tokens_B.sum())
    return total


def detect_batches(
    detector: Detector, cache: BatchSource, batch_size: int, device: torch.device | str, rank: int = 0, world: int = 1
) -> Iterator[list[Detections]]:
    """`detect`, batch by batch, so that progress can be shown."""
    with evaluating(detector):
        for batch in eval_batches(cache, batch_size, device=device, rank=rank, world=world):
            yield detect_batch(detector, batch)


@torch.inference_mode()
def detect_batch(detector: Detector, batch: Batch, threshold: float = 0.0) -> list[Detections]:
    """Detections of one batch, in original pixels, with score above `threshold`; the detector must be in eval mode."""
    predictions = detector.decode(detector(batch.images_BCHW, batch.sizes_B2))
    return best_of(predictions).to_detections(batch, detector.names, threshold)


def best_of(predictions: Predictions) -> Predictions:
    """The best `MAX_DETECTIONS` of each image."""
    best = slice(MAX_DETECTIONS)
    return Predictions(predictions.boxes_BD4[:, best], predictions.scores_BD[:, best], predictions.labels_BD[:, best])

"""A detector over a data set: which device, and what it says of every image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from boxwright.data.loader import eval_batches
from boxwright.models.losses.focal import without_synchronisation
from boxwright.types import Batch, Detections, Detector, Predictions

if TYPE_CHECKING:
    from boxwright.data.cache import Cache

MOST = 100  # detections an image: what COCO's numbers look at


def detect(
    detector: Detector,
    cache: Cache,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world: int = 1,
) -> list[Detections]:
    """What the detector says of each image of the cache, in its order, at most `MOST` an image, in original pixels.

    The detector must be on `device`; it is left in the mode (training or evaluation) it was in. With `world` processes
    each gets the images that `eval_batches` deals to its `rank`.
    """
    return [found for batch in detect_batches(detector, cache, batch_size, device, rank, world) for found in batch]


@dataclass
class Validation:
    """What a detector says of images, and how far that is from what is true of them.

    Attributes:
        found: the detections of each image, as `detect` has them.
        losses: each term of the loss, the sum over the images; that of a batch is the same for all of its images.
        likelihood: log-likelihood of what is true of the images; 0 for a detector that doesn't say objects in words.
        words: how many words that is the sum of.
    """

    found: list[Detections] = field(default_factory=list)
    losses: dict[str, float] = field(default_factory=dict)
    likelihood: float = 0.0
    words: float = 0.0


def validate(
    detector: Detector, cache: Cache, batch_size: int, device: torch.device | str, rank: int = 0, world: int = 1
) -> Validation:
    """`detect`, and what training is judged by; a loss that draws at random does so from torch's global generator."""
    done = Validation()
    with evaluating(detector), torch.inference_mode(), without_synchronisation():
        for batch in eval_batches(cache, batch_size, device=device, rank=rank, world=world):
            outputs = detector(batch.images_BCHW, batch.sizes_B2, batch)
            done.found += most_of(detector.decode(outputs)).to_detections(batch, detector.names)
            losses = detector.loss(outputs, batch)
            values = torch.stack(list(losses.values())).tolist()
            for name, value in zip(losses, values, strict=True):
                done.losses[name] = done.losses.get(name, 0.0) + value * len(batch)
            pair = detector.likelihood(outputs, batch)
            if pair is not None:
                done.likelihood += float(pair[0].double().sum())
                done.words += float(pair[1].sum())
    return done


@contextmanager
def evaluating(detector: Detector) -> Iterator[None]:
    """Evaluation mode, and then the mode (training or evaluation) as it was."""
    was_training = detector.training
    detector.eval()
    try:
        yield
    finally:
        detector.train(was_training)


def detect_batches(
    detector: Detector, cache: Cache, batch_size: int, device: torch.device | str, rank: int = 0, world: int = 1
) -> Iterator[list[Detections]]:
    """`detect`, a batch at a time, for whoever shows the progress."""
    with evaluating(detector):
        for batch in eval_batches(cache, batch_size, device=device, rank=rank, world=world):
            yield detect_batch(detector, batch)


@torch.inference_mode()
def detect_batch(detector: Detector, batch: Batch, threshold: float = 0.0) -> list[Detections]:
    """Detections of one batch, in original pixels, with score above `threshold`; the detector must be in eval mode."""
    said = detector.decode(detector(batch.images_BCHW, batch.sizes_B2))
    return most_of(said).to_detections(batch, detector.names, threshold)


def most_of(said: Predictions) -> Predictions:
    """The best `MOST` of each image."""
    return Predictions(said.boxes_BD4[:, :MOST], said.scores_BD[:, :MOST], said.labels_BD[:, :MOST])

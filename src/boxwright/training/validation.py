"""The validation at the end of an epoch, shared between the devices of a run."""

from collections.abc import Sequence
from typing import Any

import torch

from boxwright.data.loader import BatchSource
from boxwright.data.records import Record
from boxwright.evaluation.coco import STAT_NAMES, Report, score
from boxwright.evaluation.run import Validation, validate
from boxwright.training.fabric import Fabric
from boxwright.training.run_logger import LIKELIHOOD
from boxwright.types import Detections, Detector


def validate_on_all_devices(
    fabric: Fabric, detector: Detector, cache: BatchSource, records: Sequence[Record], batch_size: int, seed: int
) -> tuple[dict[str, float], Report, list[Detections]]:
    """The numbers of a validation, under their names in metrics.csv, its report, and the detections of each image.

    Each device validates its share of the images; all get the same result. Random draws of a loss are the same each
    time.
    """
    torch.manual_seed(seed)
    share = validate(detector, cache, batch_size, fabric.device, fabric.global_rank, fabric.world_size)
    shares: list[Any] = [share]
    if fabric.world_size > 1:
        shares = [None] * fabric.world_size
        torch.distributed.all_gather_object(shares, share)
    found = _interleaved([share.detections for share in shares])
    report = score(records, found, detector.names)
    return _numbers(report, shares), report, found


def _interleaved(shares: list[list[Detections]]) -> list[Detections]:
    """All images in their order: each share has every n-th of them, and may be one short."""
    longest = max(len(share) for share in shares)
    return [share[n] for n in range(longest) for share in shares if n < len(share)]


def _numbers(report: Report, shares: Sequence[Validation]) -> dict[str, float]:
    """AP, also by size where there are such objects; each loss, as the mean over all images; and, of detectors that
    predict tokens, the mean log-likelihood of a token of the annotated objects.
    """
    stats = dict(zip(STAT_NAMES, report.stats, strict=True))
    numbers = {"val_ap": report.ap, "val_ap50": report.ap50}
    sizes = {"small": "APs", "medium": "APm", "large": "APl"}
    numbers |= {f"val_ap_{size}": stats[name] for size, name in sizes.items() if stats[name] >= 0}
    images = sum(len(share.detections) for share in shares)
    losses = {name: sum(share.losses.get(name, 0.0) for share in shares) / images for name in shares[0].losses}
    numbers |= {"val_loss": sum(losses.values())} | {f"val_loss_{name}": value for name, value in losses.items()}
    tokens = sum(share.tokens for share in shares)
    if tokens:
        numbers[LIKELIHOOD] = sum(share.likelihood for share in shares) / tokens
    return numbers

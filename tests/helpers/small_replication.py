"""A replication with a tiny transformer behind one convolution."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch

from boxwright.interop.replications import PUBLISHED
from boxwright.models import replication
from boxwright.models.backbones.pix2seq_stems import Patches
from boxwright.models.replication import Replication

SHAPE = {
    "encoder_layers": 2,
    "decoder_layers": 2,
    "dim": 32,
    "hidden": 48,
    "heads": 4,
    "dropout": 0.0,
    "max_objects": 5,
}
VARIANTS = list(PUBLISHED)


def small_replication(variant: str, names: Sequence[str] = ("cat", "dog"), **changes: Any) -> Replication:
    """Untrained, in evaluation mode."""
    torch.manual_seed(0)
    with patch.object(replication, "FrozenResNet", lambda name: Patches(32, 2048)):
        return Replication(replace(PUBLISHED[variant], **SHAPE, **changes), tuple(names)).eval()

"""Small sequence detectors: as published, and one that copies."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from boxwright.models.patchseq import PatchSeq, PatchSeqConfig
from boxwright.models.pix2seq import Pix2Seq, Pix2SeqConfig
from boxwright.models.sequence.copying_detector import CopyingDetector

CONFIG = Pix2SeqConfig(
    backbone="test_efficientnet", image_size=96, encoder_layers=1, encoder_dim=32, encoder_hidden=64,
    encoder_heads=4, decoder_layers=2, decoder_dim=24, decoder_hidden=48, decoder_heads=3, max_objects=4, length=32,
    bins=50, first_coordinate=120, vocabulary=180,
)  # fmt: skip
COPYING = {"proposals": 20, "channels": 16, "depth": 1}


@pytest.fixture
def pix2seq() -> Pix2Seq:
    """Untrained: its sequences mean nothing, but keep all rules."""
    torch.manual_seed(0)
    return Pix2Seq(CONFIG, ("cat", "<dog>"), pretrained=False).eval()


@pytest.fixture
def copying() -> Pix2Seq:
    """Untrained, with 20 proposals; what is zero at first is not."""
    torch.manual_seed(0)
    return stirred(Pix2Seq(replace(CONFIG, **COPYING), ("cat", "<dog>"), pretrained=False))


@pytest.fixture
def copying_patches() -> PatchSeq:
    """The same, whose corners are patches and offsets; the last patches stick out of the canvas."""
    torch.manual_seed(0)
    config = PatchSeqConfig(
        "test_efficientnet", 100, decoder_layers=2, dim=24, hidden=48, heads=3, max_objects=4, fine=4, noise=True,
        **COPYING,
    )  # fmt: skip
    return stirred(PatchSeq(config, ("cat", "<dog>"), pretrained=False))


def stirred(detector: CopyingDetector) -> Any:
    for parameter in detector.decoder.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return detector.eval()

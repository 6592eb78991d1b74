"""A small sequence detector."""

import pytest
import torch

from boxwright.models.pix2seq import Pix2Seq, Pix2SeqConfig


@pytest.fixture
def pix2seq() -> Pix2Seq:
    """Untrained: its sequences mean nothing, but keep all rules."""
    torch.manual_seed(0)
    config = Pix2SeqConfig(
        backbone="test_efficientnet", image_size=96, encoder_layers=1, encoder_dim=32, encoder_hidden=64,
        encoder_heads=4, decoder_layers=2, decoder_dim=24, decoder_hidden=48, decoder_heads=3, max_objects=4, length=32,
        bins=50, first_coordinate=120, vocabulary=180,
    )  # fmt: skip
    return Pix2Seq(config, ("cat", "<dog>"), pretrained=False).eval()

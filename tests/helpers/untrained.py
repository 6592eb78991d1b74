"""A small untrained detector of each kind."""

from dataclasses import replace

import torch

from boxwright.models import registry
from boxwright.types import Detector

SMALLEST = "test_efficientnet"
PADDED = "tf_mobilenetv3_small_minimal_100"  # small, and it pads its maps as the default backbone does


def untrained(model: str, backbone: str = SMALLEST) -> Detector:
    """For images of 64 pixels, with few layers; sequence detectors generate up to four objects."""
    torch.manual_seed(0)
    entry = registry.DETECTORS[model]
    config = replace(entry.sizes["nano"], image_size=64, backbone=backbone)
    small = {"encoder_layers": 1, "decoder_layers": 2, "max_objects": 4, "length": 20}
    config = replace(config, **{name: value for name, value in small.items() if hasattr(config, name)})
    return entry.network(config, ("cat", "dog"), pretrained=False).eval()

"""A small untrained detector of each kind."""

from dataclasses import replace

import torch

from boxwright.models import registry
from boxwright.types import Detector


def untrained(model: str) -> Detector:
    """For images of 64 pixels, with few layers; sequence detectors generate up to four objects."""
    torch.manual_seed(0)
    entry = registry.DETECTORS[model]
    config = replace(entry.sizes["nano"], image_size=64, backbone="test_efficientnet")
    small = {"encoder_layers": 1, "decoder_layers": 2, "max_objects": 4, "length": 20}
    config = replace(config, **{name: value for name, value in small.items() if hasattr(config, name)})
    return entry.network(config, ("cat", "dog"), pretrained=False).eval()

"""A small untrained detector of each kind."""

from dataclasses import replace

import torch

from boxwright.models import registry
from boxwright.types import Detector


def untrained(model: str) -> Detector:
    """For images of 64 pixels; sequence detectors generate up to four objects."""
    torch.manual_seed(0)
    shape = {"image_size": 64, "backbone": "test_efficientnet"}
    detector = registry.build(model, "nano", ("cat", "dog"), **shape, pretrained=False)
    if hasattr(detector.config, "max_objects"):
        length = {"length": 20} if model == "pix2seq" else {}
        detector = type(detector)(replace(detector.config, max_objects=4, **length), detector.names, pretrained=False)
    return detector.eval()

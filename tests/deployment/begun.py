"""Detectors to export: of each kind a small one that has learned nothing."""

from dataclasses import replace

import torch

from boxwright.models import registry
from boxwright.types import Detector


def begun(model: str) -> Detector:
    """For images of 64 pixels; those that write do so of four objects."""
    torch.manual_seed(0)
    shape = {"image_size": 64, "backbone": "test_efficientnet"}
    detector = registry.build(model, "nano", ("cat", "dog"), **shape, pretrained=False)
    if hasattr(detector.config, "max_objects"):
        length = {"length": 20} if model == "pix2seq" else {}
        detector = type(detector)(replace(detector.config, max_objects=4, **length), detector.names, pretrained=False)
    return detector.eval()

"""Detectors of queries, small enough for tests."""

from dataclasses import replace
from typing import Any

import torch

from boxwright.models.deformable import PUBLISHED, Deformable, DeformableConfig
from boxwright.models.detr import PROPOSING, Detr, DetrConfig


def small_query_detector(kind: str, **more: Any) -> Detr | Deformable:
    """An untrained `detr` (as published), `proposing` (a `detr` with proposals) or `deformable`, with 7 queries, 2 + 2
    layers and 4 heads.
    """
    torch.manual_seed(0)
    shape = {"dim": 32, "hidden": 48, "heads": 4, "encoder_layers": 2, "decoder_layers": 2, "queries": 7} | more
    if kind == "detr":
        detr = DetrConfig("test_efficientnet", 96, stride=16, **shape)  # type: ignore[arg-type]
        return Detr(detr, ("cat", "<dog>"), pretrained=False).eval()
    if kind == "proposing":
        proposing = replace(PROPOSING, backbone="test_efficientnet", image_size=96, **shape)  # type: ignore[arg-type]
        return Detr(proposing, ("cat", "<dog>"), pretrained=False).eval()
    points = {"strides": (8, 16), "extra_levels": 0, "encoder_points": 2, "decoder_points": 3}
    begun = PUBLISHED if "begin" in more else DeformableConfig()
    deformable = replace(begun, backbone="test_efficientnet", image_size=96, **shape, **points)  # type: ignore[arg-type]
    return Deformable(deformable, ("cat", "<dog>"), pretrained=False).eval()

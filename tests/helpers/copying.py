"""Small detectors that copy from proposals, one of each kind."""

from dataclasses import replace
from typing import Any

import torch

from boxwright.models.patchseq import PatchSeq, PatchSeqConfig
from boxwright.models.pix2seq import Pix2Seq, Pix2SeqConfig
from boxwright.models.sequence.copying_detector import CopyingDetector

SHARED: dict[str, Any] = {
    "backbone": "test_efficientnet", "image_size": 96, "decoder_layers": 1, "max_objects": 6, "dropout": 0.0,
    "drop_path": 0.0, "proposals": 20, "channels": 24, "depth": 1,
}  # fmt: skip
PIX2SEQ = Pix2SeqConfig(
    **SHARED, decoder_dim=24, decoder_hidden=48, decoder_heads=3, length=30, bins=50, first_coordinate=120,
    vocabulary=180,
)  # fmt: skip
PATCHSEQ = PatchSeqConfig(**SHARED, dim=24, hidden=48, heads=3, fine=4, noise=True)
KINDS = ("pix2seq", "patchseq")


def copying(
    kind: str, names: tuple[str, ...] = ("cat", "dog"), trained: bool = True, **changes: Any
) -> CopyingDetector:
    """A detector with random weights; where `trained`, those that are zero at first have moved, too."""
    torch.manual_seed(0)
    network, config = (Pix2Seq, PIX2SEQ) if kind == "pix2seq" else (PatchSeq, PATCHSEQ)
    detector = network(replace(config, **changes), names, pretrained=False)  # type: ignore[arg-type,type-var]
    if trained:
        for part in (detector.decoder, detector.proposer):
            for parameter in part.parameters():
                parameter.data += 0.1 * torch.randn_like(parameter)
    return detector.eval()

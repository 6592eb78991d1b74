"""Outputs of google-research/pix2seq (commit eabd4e9, Apache-2.0, TensorFlow 2.15.1) that ours must equal."""

import json
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parents[1] / "golden"


def tokens() -> dict[str, torch.Tensor]:
    """Arrays by name: quantisation, sentences, nucleus and positions."""
    with np.load(FOLDER / "pix2seq_tokens.npz") as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored.files}


def noise() -> dict:
    """Histograms of noise boxes over 100,000 draws."""
    return json.loads((FOLDER / "pix2seq_noise.json").read_text())

"""Can `detr` learn 16 images by heart? On the CPU, where hundreds of epochs of anything more are out of reach.

    python runs/detr_overfit.py BCCD [OUT.safetensors]

The images are those of `pix2seq_overfit.py`, 296 objects; the ImageNet features rest. In each step the images are as
noisy and as bright as chance has it (`shaken`), so that the network doesn't hang on their last digits. Prints the loss,
and COCO's AP50 of what it detects on the same images. OUT keeps the weights, on which `benchmarks/onnx_speed.py` sees
what 8 bits cost.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from pix2seq_overfit import IMAGES, show
from torch import Tensor

from boxwright.config import Optim
from boxwright.data import cache
from boxwright.data.read import read
from boxwright.evaluation.coco import score
from boxwright.evaluation.run import detect
from boxwright.models.detr import SIZES, Detr
from boxwright.models.weights import save_detector
from boxwright.training.optim import make_optimizer, rate_factor, set_rate

STEPS = 1000
CONFIG = replace(SIZES["nano"], image_size=256, dropout=0.0)
OPTIM = Optim(lr=1e-3, backbone_factor=0.0, weight_decay=1e-4, warmup=0.05, hold=0.3, clip=0.5)


def main(data: Path, out: Path | None = None) -> None:
    """Train and report."""
    dataset = read(data)
    records = dataset.splits["train"][:IMAGES]
    torch.manual_seed(0)
    detector = Detr(CONFIG, dataset.names).to(memory_format=torch.channels_last)
    detector.backbone.requires_grad_(False)
    with TemporaryDirectory() as folder:
        images = cache.build(records, CONFIG.image_size, folder=Path(folder), quiet=True)
        train(detector, images)
        if out is not None:
            save_detector(out, detector, {"trained on": f"the first {IMAGES} training images of BCCD, by heart"})
        show(score(records, detect(detector, images), dataset.names), f"after {STEPS} steps")


def train(detector: Detr, images: cache.Cache) -> None:
    """One batch of all images a step."""
    batch, optimizer = images.batch(range(IMAGES)), make_optimizer(detector, OPTIM)
    started = time.perf_counter()
    detector.train()
    detector.backbone.eval()
    for step in range(STEPS):
        set_rate(optimizer, rate_factor(step, STEPS, OPTIM))
        losses = detector.loss(detector(shaken(batch.images_BCHW), batch.sizes_B2), batch)
        loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), OPTIM.clip or 0)
        optimizer.step()
        if (step + 1) % 50 == 0:
            print(f"step {step + 1:5}   loss {loss.item():.3f}   {time.perf_counter() - started:.0f} s", flush=True)


def shaken(images_BCHW: Tensor) -> Tensor:
    """Noise of up to 16 grey levels' deviation, and a brightness of 0.8 to 1.2, of each image its own."""
    level_B111, light_B111 = torch.rand(2, len(images_BCHW), 1, 1, 1)
    noisy_BCHW = images_BCHW * (0.8 + 0.4 * light_B111) + 16 * level_B111 * torch.randn(images_BCHW.shape)
    return noisy_BCHW.round().clamp(0, 255).to(torch.uint8)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

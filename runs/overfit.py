"""Can a transformer overfit 16 images? The first test of any, on the CPU.

    python runs/overfit.py pix2seq|detr BCCD [OUT.safetensors]

BCCD is the folder with Annotations/, JPEGImages/ and ImageSets/ (github Shenggan/BCCD_Dataset, MIT): its first 16
training images, 296 objects. A small network on frozen ImageNet features is trained on all of them in each step.
`pix2seq` (1.8 million parameters) gets their objects in another order and with other noise objects each time; its
features are computed once. `detr` gets images with random noise and brightness, so that it doesn't depend on their last
digits. Prints the loss, and COCO's AP50 on the same images. OUT keeps the weights, with which
`benchmarks/onnx_speed.py` measures the cost of 8 bits.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

import torch
from torch import Tensor

from boxwright.checkpoints.detector_file import save_detector
from boxwright.config import Optim
from boxwright.data import cache
from boxwright.data.read import read
from boxwright.evaluation.coco import Report, score
from boxwright.evaluation.run import detect
from boxwright.models.detr import SIZES, Detr
from boxwright.models.pix2seq import Pix2Seq, Pix2SeqConfig
from boxwright.training.optim import make_optimizer, rate_factor, set_rate
from boxwright.types import Batch

IMAGES, STEPS = 16, 1000
PIX2SEQ = Pix2SeqConfig(
    image_size=224, encoder_layers=2, encoder_dim=128, encoder_hidden=512, encoder_heads=4, decoder_layers=3,
    decoder_dim=128, decoder_hidden=512, decoder_heads=8, max_objects=28, length=140, dropout=0.0, drop_path=0.0,
)  # fmt: skip
DETR = replace(SIZES["nano"], image_size=256, dropout=0.0)
OPTIM = {
    "pix2seq": Optim(lr=2e-3, backbone_factor=0.0, weight_decay=0.05, warmup=0.04, hold=0.1, clip=1.0),
    "detr": Optim(lr=1e-3, backbone_factor=0.0, weight_decay=1e-4, warmup=0.05, hold=0.3, clip=0.5),
}
Losses: TypeAlias = Callable[[], Mapping[str, Tensor]]


def main(model: str, data: Path, out: Path | None) -> None:
    """Train and report."""
    dataset = read(data)
    records = dataset.splits["train"][:IMAGES]
    torch.manual_seed(0)
    detector = Pix2Seq(PIX2SEQ, dataset.names) if model == "pix2seq" else Detr(DETR, dataset.names)
    detector = detector.to(memory_format=torch.channels_last)
    detector.backbone.requires_grad_(False)
    with TemporaryDirectory() as folder:
        images = cache.build(records, detector.image_size, folder=Path(folder), quiet=True)
        train(detector, losses_of(detector, images.batch(range(IMAGES))), OPTIM[model])
        if out is not None:
            save_detector(out, detector, {"trained on": f"the first {IMAGES} training images of BCCD, overfitted"})
        show(score(records, detect(detector, images), dataset.names), model)
        if isinstance(detector, Pix2Seq):
            detector.config = replace(PIX2SEQ, top_p=0.4)
            show(score(records, detect(detector, images), dataset.names), f"{model}, drawn from the nucleus, top_p 0.4")


def losses_of(detector: Pix2Seq | Detr, batch: Batch) -> Losses:
    """A function that computes the losses of one step, on all images."""
    if isinstance(detector, Detr):
        return lambda: detector.loss(detector(noised(batch.images_BCHW), batch.sizes_B2, batch), batch)
    with torch.no_grad():
        features_BCHW = detector.eval().features(batch.images_BCHW, batch.sizes_B2)
    return lambda: detector.loss(detector.encode(features_BCHW), batch)


def noised(images_BCHW: Tensor) -> Tensor:
    """Images with noise of up to 16 grey levels' deviation and a brightness of 0.8 to 1.2, each with its own."""
    level_B111, brightness_B111 = torch.rand(2, len(images_BCHW), 1, 1, 1)
    noisy_BCHW = images_BCHW * (0.8 + 0.4 * brightness_B111) + 16 * level_B111 * torch.randn(images_BCHW.shape)
    return noisy_BCHW.round().clamp(0, 255).to(torch.uint8)


def train(detector: Pix2Seq | Detr, losses: Losses, optim: Optim) -> None:
    """Minimise the sum of the losses."""
    optimizer, started = make_optimizer(detector, optim), time.perf_counter()
    detector.train()
    detector.backbone.eval()
    for step in range(STEPS):
        set_rate(optimizer, rate_factor(step, STEPS, optim))
        loss = torch.stack(list(losses().values())).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), optim.clip or 0)
        optimizer.step()
        if (step + 1) % 50 == 0:
            print(f"step {step + 1:5}   loss {loss.item():.3f}   {time.perf_counter() - started:.0f} s", flush=True)


def show(report: Report, title: str) -> None:
    """Print AP50 of all classes and of each."""
    classes = ", ".join(f"{name} {numbers['ap50']:.3f}" for name, numbers in report.per_class.items())
    print(f"{title}: AP50 {report.ap50:.3f}, AP {report.ap:.3f} ({classes})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=OPTIM)
    parser.add_argument("data", type=Path, metavar="BCCD")
    parser.add_argument("out", type=Path, nargs="?", metavar="OUT.safetensors")
    main(**vars(parser.parse_args()))

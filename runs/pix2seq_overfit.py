"""Can `pix2seq` write down 16 images by heart? The first test of any sentence writer, on the CPU.

    python runs/pix2seq_overfit.py BCCD [OUT.safetensors]

BCCD is the folder with Annotations/, JPEGImages/ and ImageSets/ (github Shenggan/BCCD_Dataset, MIT): its first 16
training images, 296 objects. A small network (1.8 million parameters over ImageNet features that rest, and are
therefore computed once) reads them all in each step, and each time writes their objects in another order and with
other noise. Prints the loss, and COCO's AP50 of what it detects on the same images when it writes on its own. OUT keeps
the weights.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from boxwright.config import Optim
from boxwright.data import cache
from boxwright.data.read import read
from boxwright.evaluation.coco import Report, score
from boxwright.evaluation.run import detect
from boxwright.models.pix2seq import Pix2Seq, Pix2SeqConfig
from boxwright.models.weights import save_detector
from boxwright.training.optim import make_optimizer, rate_factor, set_rate

IMAGES, STEPS = 16, 1000
CONFIG = Pix2SeqConfig(
    image_size=224, encoder_layers=2, encoder_dim=128, encoder_hidden=512, encoder_heads=4, decoder_layers=3,
    decoder_dim=128, decoder_hidden=512, decoder_heads=8, max_objects=28, length=140, dropout=0.0, drop_path=0.0,
)  # fmt: skip
OPTIM = Optim(lr=2e-3, backbone_factor=0.0, weight_decay=0.05, warmup=0.04, hold=0.1, clip=1.0)


def main(data: Path, out: Path | None = None) -> None:
    """Train and report."""
    dataset = read(data)
    records = dataset.splits["train"][:IMAGES]
    torch.manual_seed(0)
    detector = Pix2Seq(CONFIG, dataset.names).to(memory_format=torch.channels_last)
    detector.backbone.requires_grad_(False)
    started = time.perf_counter()
    with TemporaryDirectory() as folder:
        images = cache.build(records, CONFIG.image_size, folder=Path(folder), quiet=True)
        train(detector, images, started)
        print(f"{STEPS} steps in {time.perf_counter() - started:.0f} s")
        if out is not None:
            save_detector(out, detector, {"trained on": f"the first {IMAGES} training images of BCCD, by heart"})
        for top_p in (0.0, 0.4):
            detector.config = replace(CONFIG, top_p=top_p)
            show(score(records, detect(detector, images), dataset.names), f"top_p {top_p}")


def train(detector: Pix2Seq, images: cache.Cache, started: float) -> None:
    """One batch of all images a step."""
    batch, optimizer = images.batch(range(IMAGES)), make_optimizer(detector, OPTIM)
    with torch.no_grad():
        features_BCHW = detector.eval().features(batch.images_BCHW, batch.sizes_B2)
    detector.train()
    for step in range(STEPS):
        set_rate(optimizer, rate_factor(step, STEPS, OPTIM))
        loss = detector.loss(detector.encode(features_BCHW), batch)["tokens"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), OPTIM.clip or 0)
        optimizer.step()
        if (step + 1) % 50 == 0:
            print(f"step {step + 1:5}   loss {loss.item():.3f}   {time.perf_counter() - started:.0f} s", flush=True)


def show(report: Report, how: str) -> None:
    """AP50 of all classes and of each."""
    classes = ", ".join(f"{name} {numbers['ap50']:.3f}" for name, numbers in report.per_class.items())
    print(f"{how}: AP50 {report.ap50:.3f}, AP {report.ap:.3f} ({classes})")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

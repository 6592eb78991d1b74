"""The command `demo`: evaluation, and if asked training, on the bundled blood cells."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from boxwright.checkpoints.locate import BUNDLED
from boxwright.console import make_console

if TYPE_CHECKING:
    from boxwright.evaluation.coco import Report
    from boxwright.evaluation.matches import Matches

HERE = Path(__file__).parent
DATA = HERE / "bccd"
WEIGHTS = BUNDLED["demo"]
EPOCHS = 20  # instead of the 40 of the recipe: a quarter of an hour of one CPU core


def demo(train: bool = False, out: Path | str = Path("boxwright-demo")) -> Report | Matches:
    """Detect blood cells in the 72 test images of BCCD, and evaluate and show the result.

    Where torch is not installed, the exported detector does it, and precision and recall stand for the evaluation.

    Args:
        train: train the detector first, from ImageNet weights, on the 292 bundled training images.
        out: folder for index.html, overlays, tables and, with --train, the run.

    Returns:
        The scores on the test split; without torch, which detections are right.
    """
    out = Path(out)
    if not train and find_spec("torch") is None:
        from boxwright.bundled.light_demo import light_demo

        return light_demo(DATA, out)
    from boxwright.evaluation.evaluate import evaluate

    weights = _train(out / "train") if train else WEIGHTS
    report = evaluate(weights, DATA, split="test", out=out)
    make_console().print(
        f"\nOpen {out / 'index.html'} to see it. Next, on your own images:\n"
        "  boxwright check DATA            finds every error in a data set, and says how to fix it\n"
        "  boxwright train DATA            a detector of your own classes, in runs/train\n"
        "  boxwright predict runs/train/best IMAGES"
    )
    return report


def _train(run: Path) -> Path:
    from boxwright.checkpoints.header import read_header, store_in_card
    from boxwright.thresholds import Thresholds
    from boxwright.training.run import train

    train(DATA, out=run, epochs=EPOCHS, val_split="test", resume=(run / "state.safetensors").exists())
    last = run / "last.safetensors"  # not the best, which the test split would have chosen
    shipped = Thresholds.from_card(json.loads(read_header(WEIGHTS)["card"]))
    store_in_card(last, shipped.to_card())  # nor thresholds that the test split has chosen
    return last

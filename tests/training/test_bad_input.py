"""Data that is hard on a detector: every one that can be trained learns from it, or says in one line why not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import boxwright
from boxwright.config import UserError
from boxwright.data.cache import Cache, build
from boxwright.data.read import train_and_val
from boxwright.models import registry
from boxwright.models.sequence.sequence_detector import SequenceDetector
from boxwright.training.optim import make_optimizer
from boxwright.training.recipes import Recipe, recipe
from boxwright.types import Batch, Detector, Predictions
from helpers.datasets import image, write_json
from helpers.training_runs import SETTINGS

DETECTORS = [(model, next(iter(entry.sizes))) for model, entry in registry.DETECTORS.items() if entry.sizes]
SIDE, CANVAS = 48, 64
Boxes = list[tuple[int, list[float]]]  # class and xywh of each object of an image


def dataset(root: Path, objects: list[Boxes], classes: int = 2) -> Path:
    """A COCO data set of noise, with the objects of each image."""
    images, annotations = [], []
    for number, boxes in enumerate(objects, 1):
        image(root / "images" / f"{number}.png", SIDE, SIDE)
        images.append({"id": number, "file_name": f"{number}.png", "width": SIDE, "height": SIDE})
        rows = [{"image_id": number, "category_id": label + 1, "bbox": box} for label, box in boxes]
        annotations += [row | {"id": len(annotations) + n} for n, row in enumerate(rows, 1)]
    categories = [{"id": k + 1, "name": f"thing {k}"} for k in range(classes)]
    write_json(root / "annotations.json", {"images": images, "annotations": annotations, "categories": categories})
    return root


def scattered(count: int, size: float, classes: int = 2, first: int = 0) -> Boxes:
    """Squares at random places, of one class after the other."""
    corners = np.random.default_rng(first).uniform(0, SIDE - size, (count, 2)).tolist()
    return [((first + n) % classes, [x, y, size, size]) for n, (x, y) in enumerate(corners)]


CASES: dict[str, dict[str, Any]] = {  # two images a step
    "objects": {
        "objects": [
            *(scattered(350, 6), []),  # more than a sequence or the queries hold, and none
            *([], []),
            *(scattered(5, 1), scattered(5, 0.1)),  # of one pixel, and of less
        ]
    },
    "one class": {"objects": [scattered(3, 12, classes=1)] * 2, "classes": 1},
    "300 classes": {"objects": [scattered(75, 12, classes=300, first=75 * n) for n in range(4)], "classes": 300},
}


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Cache]:
    """The images of each case."""
    root, found = tmp_path_factory.mktemp("bad-input"), {}
    for case, given in CASES.items():
        data = boxwright.read(dataset(root / case, **given))
        found[case] = build(data.splits["all"], CANVAS, folder=root / "cache", quiet=True)
    return found


@pytest.mark.filterwarnings("ignore:an image has more objects than")  # tests of the losses ask for this line
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("model", "size"), DETECTORS)
def test_some_steps_have_finite_losses_and_gradients(model, size, case, caches):
    names, cache = tuple(f"thing {k}" for k in range(CASES[case].get("classes", 2))), caches[case]
    detector, usual = begin(model, size, names)
    optimizer = make_optimizer(detector, usual.optim)
    for first in range(0, len(cache), 2):
        batch = cache.batch([first, first + 1])
        losses = detector.loss(detector(batch.images_BCHW, batch.sizes_B2, batch), batch)
        assert all(value.isfinite() for value in losses.values()), (first, losses)
        torch.stack(list(losses.values())).sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in detector.parameters()), first
        optimizer.step()
        optimizer.zero_grad()
    detector.eval()
    with torch.inference_mode():
        outputs = detector(batch.images_BCHW, batch.sizes_B2, batch)
        losses, found = detector.loss(outputs, batch), predictions(detector, outputs, batch)
    assert all(value.isfinite() for value in losses.values()), losses
    assert found.boxes_BD4.isfinite().all()
    assert found.scores_BD.isfinite().all()
    assert ((found.labels_BD >= 0) & (found.labels_BD < len(names))).all()


def begin(model: str, size: str, names: tuple[str, ...]) -> tuple[Detector, Recipe]:
    """An untrained detector on a tiny backbone, in training mode, and its recipe."""
    torch.manual_seed(0)
    backbone = SETTINGS["backbone"]
    detector = registry.build(model, size, names, image_size=CANVAS, backbone=backbone, pretrained=False)
    return detector.train(), recipe(model, backbone=backbone)


def predictions(detector: Detector, outputs: Any, batch: Batch) -> Predictions:
    """Of sequence detectors only a few objects: they would generate a hundred."""
    if not isinstance(detector, SequenceDetector):
        return detector.decode(outputs)
    nothing = replace(batch, valid_BN=torch.zeros_like(batch.valid_BN))
    return detector.complete(outputs, nothing, objects=3)


@pytest.mark.parametrize(("objects", "part"), [([], "training"), (scattered(2, 12), "validation")])
def test_no_object_to_learn_from_or_to_score_on_is_one_line(objects, part, tmp_path):
    data = dataset(tmp_path / "data", [objects, [], [], []])
    with pytest.raises(UserError, match=rf"none of the \d {part} images has an object") as error:
        boxwright.train(data, out=tmp_path / "run", **SETTINGS)
    assert "\n" not in str(error.value)


def test_of_many_classes_without_objects_only_some_are_named(tmp_path, capsys):
    data = boxwright.read(dataset(tmp_path / "data", [scattered(2, 12)] * 4, classes=300))
    train_and_val(data, val=0.25)
    assert "no training image has an object of thing 2, thing 3," in capsys.readouterr().err.replace("\n", " ")

"""What a run that has learned nothing is told to try: each cause alone brings up its hint, and no other."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from boxwright.data.records import Record
from boxwright.models import registry
from boxwright.training.config import RunConfig
from boxwright.training.diagnosis import diagnose, report
from boxwright.training.recipes import recipe
from boxwright.training.resolve import resolve
from boxwright.types import Detector
from helpers.training_runs import train

NAMES = ("cat", "dog")


def record(*boxes: tuple[float, float, float, float], labels: tuple[int, ...] = (), side: int = 64) -> Record:
    boxes_N4 = np.array(boxes, float).reshape(-1, 4)
    labels_N = np.array(labels or [0] * len(boxes), np.int64)
    return Record(Path("x.jpg"), side, side, boxes_N4, labels_N, np.zeros(len(boxes), bool), 1, "x")


RECORDS = [record((0, 0, 20, 20), (20, 20, 60, 60), labels=(0, 1))] * 4
USUAL = recipe("dense").epochs_for(len(RECORDS))
FEW = f"200 steps are few (100 of the usual {USUAL} epochs)"


@pytest.fixture(scope="module")
def detector() -> Detector:
    return registry.build("dense", "nano", NAMES, image_size=64, backbone="test_efficientnet", pretrained=False)


def config(folder: Path, steps: int = 2000, losses: tuple[float, float] = (9.0, 1.0), **settings) -> RunConfig:
    """Settings of a run whose loss went in a line between two values, and its metrics.csv."""
    values, epochs = np.linspace(*losses, steps), settings.get("epochs", 90)
    lines = [f"{step},{epochs * step / steps},0.001,{loss}" for step, loss in enumerate(values, 1)]
    (folder / "metrics.csv").write_text("\n".join(["step,epoch,lr,loss", *lines]) + "\n")
    return resolve(RunConfig(folder / "data", out=folder, **settings))


def hints(config: RunConfig, detector: Detector, records=RECORDS, val_records=RECORDS) -> list[str]:
    """Without those that every run gets."""
    return diagnose(config, detector, records, val_records)[:-1]


def test_a_run_without_a_visible_fault_is_told_to_look(detector, tmp_path):
    (only,) = diagnose(config(tmp_path), detector, RECORDS, RECORDS)
    assert f"boxwright train --config {tmp_path / 'config.yaml'} --show-batches" in only


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({"steps": 100}, f"100 steps are few (90 of the usual {USUAL} epochs): --epochs 100"),
        ({"steps": 1}, f"1 step is few (90 of the usual {USUAL} epochs): --epochs 100"),
        (
            {"steps": 200, "epochs": 100},
            f"200 steps are few (100 of the usual {USUAL} epochs): --batch-size 8, or more images",
        ),
        (
            {"steps": 200, "epochs": 100, "batch_size": 1},
            f"200 steps are few (100 of the usual {USUAL} epochs): take more images",
        ),
        ({"losses": (1.0, 9.0)}, "the training loss rose (from 1.4 to 8.6): --optim.lr 0.00033"),
        ({"losses": (1.0, 0.99)}, "the training loss hardly fell (from 1 to 0.99): --optim.lr 0.003"),
        ({"pretrained": False}, "the backbone began at random: leave --pretrained false out"),
        ({"adapt": "lora"}, "only a part of the weights learns (--adapt lora): --adapt full"),
    ],
)
def test_settings_and_losses(detector, tmp_path, settings, hint):
    assert hints(config(tmp_path, **settings), detector) == [hint]


def test_two_steps_do_not_say_that_the_loss_rose(detector, tmp_path):
    (only,) = hints(config(tmp_path, steps=2, losses=(1.0, 9.0)), detector)
    assert only.startswith("2 steps are few")


@pytest.mark.parametrize(("rate", "times"), [(0.05, "50"), (1e-6, "0.001")])
def test_a_learning_rate_far_from_the_recipe(detector, tmp_path, rate, times):
    plain = config(tmp_path)
    changed = replace(plain, optim=replace(plain.optim, lr=rate))
    assert hints(changed, detector) == [f"--optim.lr {rate:g} is {times} times the recipe's: --optim.lr 0.001"]


@pytest.mark.parametrize(
    ("train", "val", "hint"),
    [
        ([record((0, 0, 20, 20))], RECORDS, "no training image has an object of dog, which validation asks for"),
        ([record((0, 0, 20, 20), (70, 0, 90, 20), labels=(0, 1))], RECORDS, "1 of 2 boxes lie outside their image"),
        ([record((0, 0, 3, 3), labels=(1,))], [], "half of the objects are under 3.0 px there: --image-size 256"),
        ([record((0, 0, 20, 20), side=640)], [], "images of up to 640 px shrink to 64 px, and half of the objects are"),
    ],
)
def test_data(detector, tmp_path, train, val, hint):
    (only,) = hints(config(tmp_path), detector, train, val)
    assert hint in only


def test_the_published_network_and_another_detector(tmp_path):
    settings = {"image_size": 64, "backbone": "test_efficientnet", "pretrained": False}
    detr = registry.build("detr", "resnet50", NAMES, **settings)
    run = config(tmp_path, model="detr", size="resnet50", backbone="test_efficientnet")
    found = diagnose(run, detr, RECORDS, RECORDS)
    assert found[0].startswith("detr resnet50 is the published network, which takes hundreds of epochs of COCO")
    assert found[-1] == "the detector that learns from the fewest images and steps: --model dense"
    assert not any("--model dense" in hint for hint in diagnose(run, detr, RECORDS, RECORDS, compared=True))


def test_the_report():
    assert report(0.004, ["a", "b"]).splitlines() == [
        "AP is 0.004: the detector has learned next to nothing. Try, in this order:", "  1. a", "  2. b"
    ]  # fmt: skip


def test_a_run_says_it_at_its_end(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("boxwright.training.run.NOTHING", 1.0)
    train(data, tmp_path / "run", epochs=1)
    printed = capsys.readouterr().out
    assert "the detector has learned next to nothing. Try, in this order:\n  1. the backbone began at random" in printed
    assert "  2. 4 steps are few" in printed

"""The verb and the way through the cache: right boxes, right files, classes by name."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from boxwright.checkpoints.header import read_header
from boxwright.config import UserError
from boxwright.data.cache import build
from boxwright.data.read import read, train_and_val
from boxwright.device import choose_device
from boxwright.evaluation import evaluate as module
from boxwright.evaluation.evaluate import choose_split, evaluate
from boxwright.evaluation.run import detect
from boxwright.evaluation.thresholds import Choice
from boxwright.thresholds import Thresholds
from boxwright.types import Detector

SIZES = [(256, 128), (100, 200), (64, 64), (640, 480), (300, 300)]


@pytest.fixture
def data(paint: Callable[..., Path], tmp_path: Path) -> Path:
    """Five images with a white box each but the third, classes `other` and `box` in another order, ids with holes."""
    root = tmp_path / "shots"
    images, annotations = [], []
    for i, (width, height) in enumerate(SIZES):
        box = (width // 4, height // 4, width // 2, height // 2) if i != 2 else None
        paint(root / "images" / f"{i}.png", (width, height), box)
        images.append({"id": 100 + 7 * i, "file_name": f"{i}.png", "width": width, "height": height})
        if box:
            x1, y1, x2, y2 = box
            row = {"image_id": 100 + 7 * i, "category_id": 40, "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0}
            annotations.append({"id": 1 + i, "area": (x2 - x1) * (y2 - y1), **row})
    categories = [{"id": 13, "name": "stranger"}, {"id": 40, "name": "box"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations.json").write_text(json.dumps(content))
    return root


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, white_boxes: Detector) -> None:
    monkeypatch.setattr(module, "load_detector", lambda weights, device: white_boxes)
    monkeypatch.setenv("BOXWRIGHT_CACHE", str(tmp_path / "cache"))


def test_detect_maps_boxes_to_the_original_pixels(data: Path, white_boxes: Detector, tmp_path: Path) -> None:
    records = read(data).splits["all"]
    cache = build(records, 64, folder=tmp_path / "c", quiet=True)
    white_boxes.train()
    detections = detect(white_boxes, cache, batch_size=2)
    assert white_boxes.training
    assert [len(found) for found in detections] == [1, 1, 0, 1, 1]
    for record, found in zip(records, detections, strict=True):
        canvas_pixel = max(record.width, record.height) / 64
        np.testing.assert_allclose(found.boxes_N4, record.boxes_N4, atol=1.01 * canvas_pixel)


def test_everything_is_written(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    report = evaluate(Path("w"), data, out=out, batch_size=2)
    assert sorted(p.name for p in out.iterdir()) == [
        "confusion.csv", "confusion.png", "f1_curves.png", "index.html", "metrics.json", "pictures",
        "pr_curves.png", "predictions.json",
    ]  # fmt: skip
    printed = capsys.readouterr().out
    assert report.summary() in printed
    assert f"Expected calibration error {report.ece:.3f}" in printed
    assert "scores 0 on: stranger" in printed
    assert "split all" in printed
    assert report.ap50 == pytest.approx(1.0)

    results = json.loads((out / "predictions.json").read_text())
    assert [row["image_id"] for row in results] == [100, 107, 121, 128]
    assert {row["category_id"] for row in results} == {40}
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["stats"]["AP50"] == report.ap50
    assert metrics["calibration"]["ece"] == report.ece
    assert metrics["unknown_classes"] == ["stranger"]
    assert metrics["thresholds"]["best"] is None
    assert "too few objects to choose a score threshold on: 4, and it takes 20" in printed
    with (out / "confusion.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[2] == ["box", "0", "4", "0"]
    assert len(list((out / "pictures").iterdir())) == 5
    with Image.open(out / "confusion.png") as picture:
        assert picture.format == "PNG"
    assert (out / "index.html").read_text().count("<figure>") == 8


def test_thresholds_are_chosen_and_written_into_the_weights(
    data: Path, tmp_path: Path, white_boxes: Detector, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr("boxwright.evaluation.thresholds.LEAST_OBJECTS", 4)
    monkeypatch.setattr("boxwright.visualization.charts._save", lambda figure, out: out.touch())
    weights = tmp_path / "best.safetensors"
    save_file({"a": torch.zeros(1)}, weights, {"format": "boxwright-1", "card": "{}"})
    evaluate(weights, data, out=tmp_path / "out", store=False)
    assert "not written into the weights: as asked" in capsys.readouterr().out
    assert json.loads(read_header(weights)["card"]) == {}
    report = evaluate(weights, data, out=tmp_path / "out")
    assert "score over 0.450 (stored; chosen on 5 images of shots, split all); written into the weights" in (
        " ".join(capsys.readouterr().out.split())
    )
    assert report.thresholds.overall(Choice(None, Thresholds(0.45))).in_use.f1 == 1
    stored = json.loads(read_header(weights)["card"])
    words = "5 images of shots, split all"
    assert stored["thresholds"] == {"overall": 0.45, "classes": {"box": 0.45}, "chosen on": words}
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["thresholds"]["best"] == metrics["thresholds"]["in_use"] == stored["thresholds"]
    assert metrics["confusion"]["thresholds"] == {"stranger": 0.45, "box": 0.45}
    white_boxes.card = stored
    evaluate(weights, data, out=tmp_path / "out")
    assert "--store true replaces those" in capsys.readouterr().out
    with pytest.raises(UserError, match="copy it, and give the copy"):
        evaluate("hf://owner/name", data, store=True)


def test_the_folder_is_beside_the_weights_unless_said(data: Path, tmp_path: Path) -> None:
    weights = tmp_path / "runs" / "best.safetensors"
    weights.parent.mkdir()
    weights.touch()
    evaluate(weights.with_suffix(""), data)
    assert (tmp_path / "runs" / "evaluate-shots-all" / "metrics.json").is_file()


def test_a_place_that_cannot_be_written_is_named_before_any_work(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(module, "load_detector", lambda weights, device: pytest.fail("worked before it complained"))
    with pytest.raises(UserError, match="file is a file, not a folder; give another --out"):
        evaluate("weights", data, out=tmp_path / "file" / "page")


def test_no_class_in_common(data: Path, tmp_path: Path, white_boxes: Detector) -> None:
    white_boxes.names = ("unicorn",)
    with pytest.raises(UserError, match=r"no class in common: it knows unicorn; the data has stranger, box"):
        evaluate(Path("w"), data, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_choice_of_the_split(data: Path) -> None:
    dataset = read(data)
    records = dataset.splits["all"]

    def splits(*names: str):
        return type(dataset)(dataset.root, "coco", dataset.names, dict.fromkeys(names, records))

    assert choose_split(splits("train", "val", "test"), None)[0] == "test"
    assert choose_split(splits("train", "val"), None)[0] == "val"
    assert choose_split(splits("all"), None)[0] == "all"
    assert choose_split(splits("mine"), None)[0] == "mine"
    assert choose_split(splits("train", "val"), "train")[0] == "train"
    with pytest.raises(UserError, match="did you mean 'train'"):
        choose_split(splits("train", "val"), "trainn")
    with pytest.raises(UserError, match="choose one of train, extra"):
        choose_split(splits("train", "extra"), None)
    records = records[:0]
    with pytest.raises(UserError, match="no images"):
        choose_split(splits("val"), None)


def test_what_a_run_held_out_is_scored_by_name(data: Path, tmp_path: Path, white_boxes: Detector) -> None:
    dataset = read(data)
    train, held_out = train_and_val(dataset, 0.4, 3)
    settings = {"val": 0.4, "seed": 3, "train_split": None, "val_split": None}
    white_boxes.card = {"settings": settings, "trained on": f"{len(train)} images of shots"}
    evaluate("w", data, split="val", out=tmp_path / "out", store=False)
    results = json.loads((tmp_path / "out" / "predictions.json").read_text())
    with_box = {record.image_id for record in held_out if len(record.boxes_N4)}
    assert {row["image_id"] for row in results} == with_box
    assert {row["category_id"] for row in results} == {40}
    white_boxes.card["trained on"] = "9 images of shots"
    with pytest.raises(UserError, match=r"trained on 9 images of shots, not on 3 of these: .*; choose one of all with"):
        evaluate("w", data, split="val", out=tmp_path / "out", store=False)
    white_boxes.card = {}
    with pytest.raises(UserError, match=r"has no split 'val'.*; it has all"):
        evaluate("w", data, split="val", out=tmp_path / "out", store=False)


def test_devices() -> None:
    assert choose_device("cpu")[0] == "cpu"
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES"):
        choose_device("cuda:1")
    assert choose_device("auto")[0] in ("cpu", "cuda", "mps")
    with pytest.raises(UserError, match="not 'gpu'"):
        choose_device("gpu")

"""Adapters, exported files, caches and runs of an earlier version are read, and go on, as they did."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import boxwright
import boxwright.runtime
from boxwright.data.cache import build
from helpers.frozen import EXPECTED, FILES, LAST_BITS, unpack, unpack_folder


def found(predictor) -> dict[str, list]:
    """What is found in an image, with all scores, as it fits into JSON."""
    with Image.open(FILES / "data" / "images" / "1.png") as image:
        detections = predictor.predict(image.convert("RGB"), threshold=0.0)
    best = slice(0, 6)
    return {
        "scores": detections.scores_N[best].tolist(),
        "labels": detections.labels_N[best].tolist(),
        "boxes": detections.boxes_N4[best].tolist(),
    }


def assert_found(measured: dict[str, list], expected: dict[str, list]) -> None:
    assert measured["labels"] == expected["labels"]
    np.testing.assert_allclose(measured["scores"], expected["scores"], **LAST_BITS)
    np.testing.assert_allclose(measured["boxes"], expected["boxes"], rtol=1e-3, atol=1e-2)


def open_adapter(tmp_path: Path):
    (tmp_path / "adapter").mkdir()
    unpack("dense.safetensors", tmp_path)
    return boxwright.load(unpack("adapter.safetensors", tmp_path / "adapter"), device="cpu")


def test_an_adapter_finds_what_it_did(tmp_path):
    assert_found(found(open_adapter(tmp_path)), EXPECTED["adapter"])


@pytest.mark.parametrize("name", ["dense", "detr", "pix2seq", "patchseq"])
def test_an_exported_file_finds_what_it_did(name, tmp_path):
    assert_found(found(boxwright.runtime.Detector(unpack(f"{name}.onnx", tmp_path))), EXPECTED["exported"][name])


@pytest.mark.parametrize("name", ["dense", "detr", "deformable", "pix2seq", "patchseq", "replication"])
def test_a_checkpoint_finds_what_it_did(name, tmp_path):
    assert_found(found(boxwright.load(unpack(f"{name}.safetensors", tmp_path), device="cpu")), EXPECTED["found"][name])


def test_a_card_is_still_there(tmp_path):
    assert boxwright.load(unpack("dense.safetensors", tmp_path)).detector.card == {"licence": "none", "note": "frozen"}


def test_a_cache_is_read_and_not_built_again(tmp_path):
    records = boxwright.read(FILES / "data").splits["train"]
    fresh = build(records, 64, mode="pixels", folder=tmp_path, quiet=True)
    pixels = fresh.batch(range(len(fresh))).images_BCHW.clone()
    shutil.rmtree(fresh.folder)
    unpack_folder("cache", fresh.folder)
    old = build(records, 64, mode="pixels", folder=tmp_path, quiet=True)
    batch = old.batch(range(len(old)))
    assert torch.equal(batch.images_BCHW, 255 - pixels)
    assert batch.boxes_BN4.shape == (4, 1, 4)


def test_a_run_goes_on_as_if_never_interrupted(tmp_path, monkeypatch):
    monkeypatch.setenv("BOXWRIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(FILES / "data", "data")
    unpack("small.safetensors", tmp_path)
    unpack_folder("run", Path("run"))
    from boxwright.__main__ import main

    assert main(["train", "--config", "run/config.yaml", "--resume"]) == 0
    assert_same_rows(Path("run/metrics.csv"), FILES / "metrics_whole.csv")


def assert_same_rows(file: Path, expected: Path) -> None:
    with file.open() as one, expected.open() as other:
        rows, wanted = list(csv.DictReader(one)), list(csv.DictReader(other))
    assert [list(row) for row in rows] == [list(row) for row in wanted]
    for row, other_row in zip(rows, wanted, strict=True):
        for key, value in other_row.items():
            assert bool(row[key]) == bool(value), key
            assert not value or float(row[key]) == pytest.approx(float(value), rel=1e-4, abs=1e-6), key


def test_config_is_written_as_it_was(tmp_path, monkeypatch):
    """A run of today says its settings under the same names, in the same order."""
    monkeypatch.setenv("BOXWRIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(FILES / "data", "data")
    unpack("small.safetensors", tmp_path)
    run = boxwright.train("data", out="run", weights="small.safetensors", epochs=3, batch_size=2, device="cpu")
    assert (run / "config.yaml").read_text() == (FILES / "run" / "config.yaml").read_text()
    assert_same_rows(run / "metrics.csv", FILES / "metrics_whole.csv")
    assert sorted(path.name for path in run.iterdir() if path.is_file()) == EXPECTED["files"]

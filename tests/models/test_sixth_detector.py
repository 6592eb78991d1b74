"""A detector is one file and one line of the registry: everything else works with it as it is."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import boxwright
from boxwright.config import UserError
from boxwright.deployment.export import export
from boxwright.models.registry import DETECTORS, Entry
from boxwright.runtime import Detector as Exported
from helpers.frozen import FILES
from helpers.toy_detector import Toy, ToyConfig


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("BOXWRIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(DETECTORS, "toy", Entry(Toy, ToyConfig, {"nano": ToyConfig()}))
    return shutil.copytree(FILES / "data", tmp_path / "data")


@pytest.fixture
def run(data, tmp_path, no_charts):
    return boxwright.train(data, "toy", out=tmp_path / "run", epochs=1, batch_size=2, pretrained=False, device="cpu")


def test_it_is_trained_validated_saved_loaded_and_predicts(data, run, tmp_path):
    torch.manual_seed(0)
    before = Toy(ToyConfig(), ("cat", "dog", "owl"), pretrained=False).state_dict()
    predictor = boxwright.load(run / "best", device="cpu")
    assert predictor.detector.card["epoch"] == 1
    assert any(not torch.equal(before[key], value) for key, value in predictor.detector.state_dict().items())
    (found,) = predictor.predict([data / "images" / "1.png"], threshold=0.0)
    assert len(found) == 1
    assert found.names == ("cat", "dog", "owl")
    assert boxwright.evaluate(run / "best", data, out=tmp_path / "scored", device="cpu").ap >= 0


def test_it_is_fine_tuned_and_taught(data, run, tmp_path):
    again = boxwright.train(
        data, out=tmp_path / "tuned", weights=run / "best", teacher=run / "best", epochs=1, batch_size=2, device="cpu"
    )
    assert boxwright.load(again, device="cpu").detector.card["taught by"].startswith("toy")


@pytest.mark.slow
def test_it_is_exported_and_says_the_same_without_torch(data, run, tmp_path):
    file = export(run / "best", out=tmp_path / "toy.onnx")
    image = Image.open(data / "images" / "1.png").convert("RGB")
    one, other = (p.predict(image, threshold=0.0) for p in (boxwright.load(run, device="cpu"), Exported(file)))
    np.testing.assert_allclose(one.boxes_N4, other.boxes_N4, atol=0.05)
    np.testing.assert_allclose(one.scores_N, other.scores_N, atol=1e-3)


def test_what_it_does_not_offer_is_said_in_one_line(data, run):
    image = data / "images" / "1.png"
    with pytest.raises(UserError, match="can't be explained"):
        boxwright.explain(run, image)
    with pytest.raises(UserError, match="objects"):
        boxwright.load(run, device="cpu").predict(image, given=[("cat", (1, 1, 9, 9))])
    assert any(entry.model == "toy" for entry in boxwright.list_models())

"""A detector goes to the hub and comes back; the hub is a stand-in on this machine."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import boxwright
from boxwright.checkpoints.locate import BUNDLED
from boxwright.config import UserError
from boxwright.deployment.push import model_card, push
from helpers.hub_server import Hub

IMAGE = next((BUNDLED["demo"].parent / "bccd" / "test").rglob("*.*"))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = Hub()
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", server.token)
    monkeypatch.chdir(tmp_path)
    yield server
    server.shutdown()


def test_there_and_back(hub, capsys):
    url = push("demo", "me/cells", image=IMAGE)
    assert url == f"{hub.url}/me/cells"
    assert hub.repositories == {"me/cells": True}  # private
    assert sorted(name for name in hub.files["me/cells"] if name != ".gitattributes") == [
        "README.md", "example.jpg", "model.safetensors",
    ]  # fmt: skip
    assert hub.files["me/cells"]["model.safetensors"] == BUNDLED["demo"].read_bytes()
    assert "![objects that it finds" in hub.files["me/cells"]["README.md"].decode()
    again, source = boxwright.load("me/cells", device="cpu"), boxwright.load("demo", device="cpu")
    np.testing.assert_array_equal(again.predict(IMAGE).boxes, source.predict(IMAGE).boxes)
    assert again.thresholds == source.thresholds


def test_public_if_asked_and_again(hub):
    push("demo", "me/open", public=True, licence="mit")
    push("demo", "me/open", public=True)
    assert hub.repositories == {"me/open": False}


def test_who_may_not(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(UserError, match=r"does not let you write me/cells: `hf auth login`"):
        push("demo", "me/cells")
    assert hub.files == {}


@pytest.mark.parametrize("name", ["cells", "me/cells@v2", "a/b/c", "", "me/"])
def test_names_that_are_none(hub, name):
    with pytest.raises(UserError, match="owner/name"):
        push("demo", name)
    assert hub.repositories == {}


def test_nobody_is_there(hub, monkeypatch):
    hub.shutdown()
    hub.server_close()
    with pytest.raises(UserError, match="can't be reached"):
        push("demo", "me/cells")


def test_the_card_says_what_the_weights_say(tmp_path):
    text = model_card(BUNDLED["demo"], "me/cells", has_picture=False)
    assert text.startswith("---\nlibrary_name: boxwright\n")
    assert "license: apache-2.0" in text
    assert "| classes | Platelets, RBC, WBC |" in text
    assert "| AP, AP50 in validation | 0.580, 0.902 |" in text
    assert "| trained on | 292 images of bccd |" in text
    assert "None" not in text
    file = Path(shutil.copy(BUNDLED["demo"], tmp_path))
    assert "license: mit" in model_card(file, "me/cells", False, "MIT")

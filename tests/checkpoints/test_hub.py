import hashlib
import os
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from boxwright.checkpoints import hub
from boxwright.checkpoints.detector_file import load_detector, save_detector
from boxwright.checkpoints.locate import find_weights
from boxwright.config import UserError
from boxwright.models import registry

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def file(tmp_path) -> Path:
    detector = registry.build(
        "dense", "nano", ("cat", "dog"), image_size=64, backbone="test_efficientnet", pretrained=False
    )
    save_detector(tmp_path / "own.safetensors", detector, {"epoch": 3})
    return tmp_path / "own.safetensors"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of the hub, and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def lay(cache: Path, repo: str, file: Path, name: str = "model.safetensors") -> Path:
    """Put a file into the cache as the hub's client does; the path of its bytes."""
    home = cache / f"models--{repo.replace('/', '--')}"
    blob = home / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
    link = home / "snapshots" / COMMIT / name
    for folder in (blob.parent, link.parent, home / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(file.read_bytes())
    link.symlink_to(os.path.relpath(blob, link.parent))
    (home / "refs" / "main").write_text(COMMIT)
    return blob


@pytest.mark.parametrize(
    "name", ["me/cells", "hf://me/cells", Path("hf://me/cells"), f"me/cells@{COMMIT}", f"hf://me/cells@{COMMIT}"]
)
def test_a_detector_in_the_cache_is_loaded_by_name_without_a_network(cache, file, name):
    lay(cache, "me/cells", file)
    assert load_detector(name).names == ("cat", "dog")


def test_what_is_not_there_says_how_to_get_it(cache):
    with pytest.raises(UserError) as error:
        load_detector("me/cells@v2")
    message = str(error.value)
    assert "HF_HUB_OFFLINE is set" in message
    assert "`hf download me/cells --revision v2 --local-dir FOLDER`" in message
    assert str(cache) in message


def test_a_file_that_is_not_what_its_checksum_says_is_refused(cache, file):
    blob = lay(cache, "me/cells", file)
    blob.write_bytes(file.read_bytes()[:-1] + b"\0")
    with pytest.raises(UserError, match=r"model.safetensors of me/cells is damaged \(SHA-256"):
        load_detector("me/cells")


def test_a_repository_without_safetensors_is_one_clear_line(cache, file):
    lay(cache, "me/cells", file, "model.bin")
    with pytest.raises(UserError, match=r"me/cells has no .safetensors file"):
        load_detector("me/cells")


def test_a_repository_of_another_project_says_how_to_convert(cache, file):
    save_file(load_file(file), file)
    lay(cache, "me/other", file)
    with pytest.raises(UserError, match=r"boxwright import-weights"):
        load_detector("me/other")


def test_the_hub_is_never_asked_for_what_may_be_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trained").mkdir()
    for local in ("trained/mine", "runs/mine", "me/cells.safetensors", "a/b/c", "best", "/a/b", "../a", tmp_path / "a"):
        assert hub.repository(local) is None
        with pytest.raises(UserError, match="no weights at"):
            find_weights(Path(local))
    assert hub.repository("me/cells") == ("me/cells", None)
    assert hub.repository("hf://trained/mine@v1.0") == ("trained/mine", "v1.0")
    with pytest.raises(UserError, match="hf:// is followed by owner/name"):
        find_weights(Path("hf://cells"))


@pytest.mark.parametrize("name", ["model.safetensors", "cells.safetensors"])
def test_a_folder_as_the_hub_has_it_is_enough(tmp_path, file, name):
    (tmp_path / "copied").mkdir()
    file.rename(tmp_path / "copied" / name)
    (tmp_path / "copied" / "README.md").write_text("cells")
    assert load_detector(tmp_path / "copied").card == {"epoch": 3}


def test_tensors_that_changed_on_the_way_are_noticed(file):
    with safe_open(file, framework="pt") as stored:
        header = stored.metadata()
    tensors = load_file(file)
    next(iter(tensors.values())).view(-1)[0] += 1
    save_file(tensors, file, metadata=header)
    with pytest.raises(UserError, match="is damaged: its tensors have another checksum"):
        load_detector(file)

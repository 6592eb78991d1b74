"""A run that ends anywhere, for any reason, goes on to the same result; what else changes is noticed."""

import json
import os
import shutil
import signal
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import boxwright
from boxwright.__main__ import main
from boxwright.checkpoints.tensors import save_tensors
from boxwright.config import Optim, UserError
from boxwright.training import loop, state
from boxwright.training.config import RecipeName, RunConfig, fill_in_settings, recipe_settings
from boxwright.training.folder_lock import locked
from boxwright.training.resolve import resolve
from boxwright.training.run_logger import RunLogger
from helpers.training_runs import COMMON, rows, train

PICTURES = ("validation/00001-1.jpg", "validation/00008-8.jpg")


class KilledError(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted, only to be read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BOXWRIGHT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.setattr("boxwright.visualization.charts.curves", lambda *args: args[-1].touch())
        return train(data, tmp_path_factory.mktemp("whole") / "run")


def assert_same(run: Path, whole: Path) -> None:
    """Metrics, weights and pictures are the same."""
    assert rows(run) == rows(whole)
    for name in ("best", "last"):
        one, other = (boxwright.load(folder / name, device="cpu").detector for folder in (run, whole))
        assert one.card == other.card
        other_state = other.state_dict()
        assert all(torch.equal(value, other_state[key]) for key, value in one.state_dict().items())
    for name in PICTURES:
        assert (run / name).read_bytes() == (whole / name).read_bytes()


def kill_at(monkeypatch: pytest.MonkeyPatch, function: str, call: int, after: bool = False) -> None:
    """End the run at the n-th call of a function of the loop, before or after it has done its work."""
    original, calls = getattr(loop, function), iter(range(1, 99))

    def killed(*args, **kwargs):
        last = next(calls) == call
        if last and not after:
            raise KilledError
        result = original(*args, **kwargs)
        if last:
            raise KilledError
        return result

    monkeypatch.setattr(loop, function, killed)


@pytest.mark.parametrize(
    ("function", "call", "after"),
    [("validate_on_all_devices", 1, True), ("save_state", 1, False), ("save_state", 1, True),
     ("save_detector", 1, False), ("write_validation_pictures", 1, False), ("save_detector", 2, False),
     ("save_detector", 2, True), ("validate_on_all_devices", 2, True), ("save_state", 2, True),
     ("save_detector", 3, True), ("save_detector", 4, False)],
)  # fmt: skip
def test_a_run_killed_at_the_end_of_an_epoch_goes_on(data, whole, tmp_path, monkeypatch, function, call, after):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        kill_at(patch, function, call, after)
        try:
            train(data, out)
        except KilledError:
            assert train(data, out, resume=True) == out
    assert_same(out, whole)


@pytest.mark.parametrize(("function", "call"), [("validate_on_all_devices", 1), ("save_state", 2)])
def test_a_run_whose_cache_grows_is_the_same_run_and_goes_on(data, whole, tmp_path, monkeypatch, function, call):
    monkeypatch.setenv("BOXWRIGHT_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        kill_at(patch, function, call)
        with pytest.raises(KilledError):
            train(data, out, cache="grow")
    for rest in (tmp_path / "cache").glob("*/*.rows"):  # images that were being written
        rest.write_bytes(rest.read_bytes()[:-50])
    train(data, out, cache="grow", resume=True)
    assert_same(out, whole)
    assert all(cache.name.endswith("-growing") for cache in (tmp_path / "cache").iterdir())


def test_a_run_whose_cache_grows_is_not_resumed_with_other_images(data, tmp_path, monkeypatch):
    other = shutil.copytree(data, tmp_path / "other")
    train(other, tmp_path / "run", cache="grow", epochs=1)
    for image in (other / "train").iterdir():
        with Image.open(image) as picture:
            picture.resize((32, 24)).save(image)
    with pytest.raises(UserError, match="other data: the training file sizes have changed since"):
        train(other, tmp_path / "run", cache="grow", epochs=1, resume=True)


def test_a_full_disk_at_the_first_state_leaves_an_unused_folder(data, whole, tmp_path, monkeypatch):
    def full(*_):
        raise UserError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_state", full)
        with pytest.raises(UserError, match="No space left"):
            train(data, tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    assert_same(train(data, tmp_path / "run"), whole)
    assert_same(train(data, tmp_path / "again", resume=True), whole)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("step", [4, 5, 8])
def test_a_signal_at_any_step_ends_with_its_code_and_skips_nothing(
    data, whole, tmp_path, monkeypatch, step, number, code
):
    original = RunLogger.step

    def signalled(self, at, *args):
        original(self, at, *args)
        if at == step:
            os.kill(os.getpid(), number)

    command = ["train", str(data), "--out", str(tmp_path / "run"), *COMMON, "--epochs", "2"]
    with monkeypatch.context() as patch:
        patch.setattr(RunLogger, "step", signalled)
        assert main(command) == code
    assert main([*command, "--resume"]) == 0
    assert_same(tmp_path / "run", whole)


def test_a_run_goes_on_for_more_epochs_and_says_so(data, whole, tmp_path, capsys):
    out = shutil.copytree(whole, tmp_path / "run")
    train(data, out, epochs=3, resume=True, optim=Optim(lr=5e-4, clip=1.0))
    said = capsys.readouterr().out
    assert "goes on after step 8 with --epochs 3 and not 2, --optim.lr 0.0005 and not 0.001, --optim.clip 1" in said
    assert "the learning-rate schedule is recomputed" in said
    assert rows(out)[:8] == rows(whole)
    assert len(rows(out)) == 12
    assert float(rows(out)[-1]["lr"]) <= 5e-4
    assert yaml.safe_load((out / "config.yaml").read_text())["epochs"] == 3
    with pytest.raises(UserError, match="has come to epoch 3: resume with at least --epochs 3, not 2"):
        train(data, out, epochs=2, resume=True, optim=Optim(lr=5e-4, clip=1.0))


def test_a_run_that_was_out_of_patience_goes_on_with_more(data, tmp_path, monkeypatch, capsys):
    def never_better(*args):
        numbers, *rest = original(*args)
        return numbers | {"val_ap": 0.5}, *rest

    original, out = loop.validate_on_all_devices, tmp_path / "run"
    monkeypatch.setattr(loop, "validate_on_all_devices", never_better)
    train(data, out, epochs=3, optim=Optim(patience=1))
    train(data, out, epochs=3, optim=Optim(patience=1), resume=True)
    assert len(rows(out)) == 8
    train(data, out, epochs=3, optim=Optim(patience=0), resume=True)
    assert len(rows(out)) == 12
    assert "goes on after step 8 with --optim.patience 0 and not 1" in capsys.readouterr().out
    train(data, out, epochs=3, optim=Optim(patience=0), resume=True)
    assert len(rows(out)) == 12


def test_a_state_that_does_not_hold_all_adjustable_settings_is_resumed(data, whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "run")
    progress, tensors = state.read_state(out)
    del progress.adjustable["optim.patience"]
    header = {"format": state.FORMAT, "progress": json.dumps(asdict(progress))}
    save_tensors(tensors, out / state.FILE, metadata=header)
    train(data, out, resume=True, epochs=3, optim=Optim(lr=5e-4))
    assert len(rows(out)) == 12


def test_other_settings_are_named_with_a_way_on_that_works(data, whole, tmp_path, monkeypatch):
    out = shutil.copytree(whole, tmp_path / "run")
    with pytest.raises(UserError, match=r"settings, --batch-size 4 and not 2; .*there, --weights .*last begins"):
        train(data, out, batch_size=2, resume=True)
    monkeypatch.setenv("BOXWRIGHT_CACHE", str(tmp_path / "unused"))
    with pytest.raises(UserError, match=r"settings, --image-size 64 and not 96; "):
        train(data, out, image_size=96, resume=True)
    assert not (tmp_path / "unused").exists()  # nothing is cached for what is refused
    monkeypatch.undo()
    again = train(data, tmp_path / "again", batch_size=2, epochs=1, weights=out / "last", backbone=None)
    assert len(rows(again)) == 8


def test_a_loss_that_is_not_finite_is_mended_as_it_says(data, tmp_path, monkeypatch):
    def broken(self, losses, batch):
        original(self, {"giou": float("nan")} if self.progress.step == 5 else losses, batch)

    out, original = tmp_path / "run", loop.Loop._require_finite
    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_require_finite", broken)
        with pytest.raises(UserError, match=r"same command with --resume and --optim.lr 0.00033") as error:
            train(data, out)
    lr = float(str(error.value).split("--optim.lr ")[1].split(",")[0])
    assert len(rows(train(data, out, resume=True, optim=Optim(lr=lr)))) == 8


def copied(data: Path, to: Path) -> Path:
    """The data with times as they were, so that only what a test changes differs."""
    return shutil.copytree(data, to)


@pytest.mark.parametrize("split", ["train", "val"])
def test_changed_pixels_are_noticed(data, tmp_path, split):
    own = copied(data, tmp_path / "data")
    out = train(own, tmp_path / "run", epochs=1)
    file = own / split / "3.png"
    with Image.open(file) as image:
        pixels = np.array(image)
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(file)
    what = {"train": "training", "val": "validation"}[split]
    with pytest.raises(UserError, match=f"was begun with other data: the {what} images have changed since; put back"):
        train(own, out, epochs=2, resume=True)


def test_changed_validation_boxes_are_noticed(data, tmp_path):
    own = copied(data, tmp_path / "data")
    out = train(own, tmp_path / "run", epochs=1)
    file = own / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"][2] -= 1
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="other data: the validation annotations have changed since; put back"):
        train(own, out, epochs=1, resume=True)


def test_two_processes_do_not_write_one_folder(data, tmp_path):
    with locked(tmp_path / "run"), pytest.raises(UserError, match=r"another process writes in .*run at this moment"):
        train(data, tmp_path / "run", epochs=1)
    train(data, tmp_path / "run", epochs=1)


def test_what_a_killed_run_left_half_written_is_removed(data, whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "run")
    leftovers = [".last.safetensors.abcd_123", ".metrics.csv.00000000", "validation/.00001-1.jpg.zzzzzzzz"]
    others = [".last.safetensors", ".mine.abcd1234", ".best.onnx.abcd1234"]
    for name in leftovers + others:
        (out / name).write_text("x")
    train(data, out, resume=True)
    assert [name for name in leftovers if (out / name).exists()] == []
    assert [name for name in others if (out / name).exists()] == others


def test_rows_cut_in_half_are_dropped(tmp_path):
    table = "step,epoch,lr,loss,val_ap\n1,0.1,1,1,\n2,0.2,1,1,\n1,0.3,1,1,\n3,0.3,1,1,\n4,0.4,1\n"
    (tmp_path / "metrics.csv").write_text(table)
    assert [row["step"] for row in RunLogger(tmp_path, 9, 5, active=True).rows] == ["1", "2", "3"]


def test_a_run_is_resumed_without_repeating_its_settings(data, tmp_path, capsys):
    out = train(data, tmp_path / "run", epochs=1, seed=3, image_size=64)
    boxwright.train(data, out=out, epochs=2, device="cpu", resume=True)
    assert len(rows(out)) == 8
    settings = yaml.safe_load((out / "config.yaml").read_text())
    assert (settings["seed"], settings["image_size"], settings["epochs"]) == (3, 64, 2)
    assert f"defaults are those of {out / 'config.yaml'}" in capsys.readouterr().out


@pytest.mark.parametrize("name", get_args(RecipeName))
def test_a_recipe_of_the_package_fills_what_is_left_open(name):
    settings = recipe_settings(name)
    config = resolve(fill_in_settings(RunConfig(Path("DATA"), batch_size=3), settings))
    assert (config.model, config.size, config.epochs) == (settings["model"], settings["size"], settings["epochs"])
    assert config.batch_size == 3
    assert config.optim.lr == settings["optim"]["lr"]
    assert config.augment.scale == tuple(settings["augment"]["scale"])


def test_an_unknown_recipe_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(UserError, match=r"recipe can't be 'dense', .*one of: dense-nano-bccd, pix2seq-resnet50-coco"):
        boxwright.train(tmp_path, recipe="dense")

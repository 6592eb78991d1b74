"""The command `train` as a user meets it: whole runs of a tiny detector on painted squares and discs."""

import errno
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

import boxwright
from boxwright.__main__ import main
from boxwright.config import MIXING, Augment, Optim, UserError, require
from boxwright.models.dense import Dense
from boxwright.thresholds import Thresholds
from boxwright.training import recipes
from boxwright.training.config import ADJUSTABLE, RunConfig
from helpers.training_runs import COMMON, LAUNCHER, SETTINGS, rows, start, train, wait_for_rows

PROMISED = ("best.safetensors", "last.safetensors", "state.safetensors", "metrics.csv", "curves.png", "config.yaml")


@pytest.mark.slow
@pytest.mark.parametrize(
    "stages", [[], ["--optim.frozen", "0.6"], ["--augment.mosaic", "0.5", "--augment.mixup", "0.5"]]
)
def test_a_run_killed_at_any_step_and_resumed_gives_the_same_losses(data, tmp_path, stages):
    epochs = ["--epochs", "4", *stages]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(data, whole, *epochs).wait(300) == 0
    process = start(data, killed, *epochs)
    wait_for_rows(process, killed, 6)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert start(data, killed, *epochs, "--resume").wait(300) == 0
    assert rows(killed) == rows(whole)
    weights = [boxwright.load(run / "last", device="cpu").detector.state_dict() for run in (whole, killed)]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


@pytest.mark.slow
def test_ctrl_c_saves_in_the_middle_of_an_epoch_and_says_how_to_resume(data, tmp_path):
    epochs = ["--epochs", "3"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert start(data, whole, *epochs).wait(300) == 0
    process = start(data, stopped, *epochs)
    wait_for_rows(process, stopped, 5)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "--resume goes on" in output
    assert "Traceback" not in output
    assert start(data, stopped, *epochs, "--resume").wait(300) == 0
    assert rows(stopped) == rows(whole)


@pytest.mark.slow
def test_two_processes_train_one_model_and_go_on_with_it_when_killed(data, tmp_path):
    out = tmp_path / "two"
    command = [*LAUNCHER, "-m", "boxwright", "train", str(data), "--out", str(out), *COMMON, "--epochs", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cpu x 2" in done.stdout
    assert len(rows(out)) == 4  # 16 images, 2 epochs, 2 processes of 4
    assert rows(out)[-1]["val_ap"] != ""
    assert float(rows(out)[-1]["val_loss"]) > 0

    killed = tmp_path / "killed"
    command[command.index(str(out))] = str(killed)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
    wait_for_rows(process, killed, 3)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert subprocess.run([*command, "--resume"], env=environment, capture_output=True, timeout=300).returncode == 0
    assert rows(killed) == rows(out)


@pytest.mark.slow
def test_processes_with_unequal_shares_validate_without_waiting_for_each_other(data, tmp_path):
    out, one = tmp_path / "two", tmp_path / "one"
    held_out = [str(data / "annotations" / "instances_train.json"), "--val=0.3", "--epochs=1", "--optim.lr=0"]
    command = ["-m", "boxwright", "train", *held_out, *COMMON, "--batch_size=2", "--out"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for start_with, folder in ((LAUNCHER, out), ([sys.executable], one)):
        done = subprocess.run([*start_with, *command, str(folder)], env=environment, capture_output=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    assert b"5 to validate on" in done.stdout
    losses = [float(rows(folder)[-1]["val_loss"]) for folder in (out, one)]
    assert losses[0] == pytest.approx(losses[1], rel=0.2)  # other images share a batch


@pytest.mark.usefixtures("charts")
def test_a_run_leaves_what_it_promises_and_config_repeats_it(data, tmp_path, request):
    out = train(data, tmp_path / "run", epochs=1)
    assert all((out / name).is_file() for name in PROMISED)
    assert list((out / "tensorboard").iterdir())
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    assert [int(row["step"]) for row in rows(out)] == list(range(1, 5))
    assert [path.name for path in sorted((out / "validation").iterdir())] == [
        "00001-1.jpg",
        "00005-5.jpg",
        "00008-8.jpg",
    ]
    request.getfixturevalue("no_charts")
    again = tmp_path / "again"
    assert main(["train", "--config", str(out / "config.yaml"), "--out", str(again)]) == 0
    assert rows(again) == rows(out)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["pix2seq", "detr", "deformable"])
def test_a_run_explains_its_best_weights(data, tmp_path, model):
    run = boxwright.train(data, model, out=tmp_path / "run", epochs=1, **SETTINGS)
    assert sorted(p.name for p in (run / "explain").iterdir()) == ["00001-1.jpg", "00005-5.jpg", "00008-8.jpg"]
    last = rows(run)[-1]
    terms = [name for name in last if name.startswith("loss_")]
    assert terms
    assert sum(float(last[f"val_{name}"]) for name in terms) == pytest.approx(float(last["val_loss"]))


def test_the_card_and_the_names_travel_with_the_weights(finished):
    detector = boxwright.load(finished, device="cpu").detector
    assert detector.names == ("square", "disc")
    assert detector.card["epoch"] == 1
    assert detector.card["settings"]["batch_size"] == 4


def test_the_thresholds_of_the_validation_travel_with_the_weights(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "boxwright.evaluation.thresholds.ThresholdReport.choose",
        lambda report, words: Thresholds(0.3, {report.names[1]: 0.25}, words),
    )
    run = train(data, tmp_path / "run", epochs=1)
    words = f"score over square 0.300, disc 0.250 (stored; chosen on 8 validation images of {data.name})"
    assert f"`predict` shows objects with a {words}" in capsys.readouterr().out
    for name in ("best", "last"):
        predictor = boxwright.load(run / name, device="cpu")
        assert predictor.thresholds.describe(predictor.names) == words
    again = boxwright.train(data, weights=run / "last", out=tmp_path / "again", epochs=1, batch_size=4, device="cpu")
    assert boxwright.load(again, device="cpu").detector.card["thresholds"]["overall"] == 0.3


def test_where_too_few_objects_are_left_to_choose_on_it_says_so_and_trains_on(data, tmp_path, capsys):
    run = train(data, tmp_path / "run", epochs=1)
    output = capsys.readouterr().out
    assert "validation: too few objects to choose a score threshold on: " in output
    assert "`predict` shows objects with a score over 0.5 (the detector stores no threshold)" in output
    assert "thresholds" not in boxwright.load(run, device="cpu").detector.card


@pytest.mark.parametrize(("frozen", "unchanged"), [(1.0, True), (0.5, False)])
def test_a_frozen_backbone_learns_in_the_second_stage(data, finished, tmp_path, frozen, unchanged):
    begun = boxwright.load(finished / "last")
    again = {"weights": finished / "last", "backbone": None, "epochs": 1}
    run = train(data, tmp_path / "run", **again, optim=Optim(frozen=frozen, ema=0.0, lr=1e-2))
    before, after = (found.detector.backbone.net.state_dict() for found in (begun, boxwright.load(run / "last")))
    assert torch.equal(before["conv_stem.weight"], after["conv_stem.weight"]) is unchanged


def test_gradients_add_up_over_accumulated_batches(data, tmp_path):
    out = train(data, tmp_path / "run", batch_size=2, optim=Optim(accumulate=4), epochs=1)
    assert len(rows(out)) == 2


def test_training_goes_on_from_given_weights(data, tmp_path):
    first = train(data, tmp_path / "first", epochs=2)
    second = train(data, tmp_path / "second", weights=first / "last", epochs=1, optim=Optim(lr=1e-6))
    assert float(rows(second)[0]["loss"]) < float(rows(first)[0]["loss"])


def test_patience_ends_a_run_that_gets_no_better(data, tmp_path, monkeypatch):
    report = SimpleNamespace(thresholds=SimpleNamespace(choose=lambda *_: None))
    same = {"val_ap": 0.1, "val_ap50": 0.2}, report, []
    monkeypatch.setattr("boxwright.training.loop.validate_on_all_devices", lambda *_: same)
    monkeypatch.setattr("boxwright.training.loop.write_validation_pictures", lambda *_: None)
    out = train(data, tmp_path / "run", epochs=6, optim=Optim(patience=2))
    assert len(rows(out)) == 3 * 4


def test_views_fill_a_batch_with_draws_of_fewer_images(data, tmp_path):
    out = train(data, tmp_path / "run", epochs=1, augment=Augment(views=2))
    assert len(rows(out)) == 8


def test_a_held_out_split_is_made_where_none_is_named(data, tmp_path, capsys):
    train(data / "annotations" / "instances_train.json", tmp_path / "run", epochs=1, val=0.25)
    assert "12 images to train on, 4 to validate on" in capsys.readouterr().out


def test_show_batches_only_draws(data, tmp_path):
    out = train(data, tmp_path / "run", show_batches=True)
    assert [path.name for path in out.iterdir()] == ["batches.png"]


@pytest.mark.parametrize(
    ("given", "said"),
    [({"batch_size": 1}, "--augment.mosaic, --augment.mixup: images are mixed with others of their batch, which has "),
     ({"val": 15 / 16}, "there is only one to train on; it is mixed with itself"), ({}, "")],
)  # fmt: skip
def test_it_is_said_why_images_can_not_be_mixed(data, tmp_path, capsys, given, said):
    mixed = Augment(mosaic=1.0, mixup=1.0)
    images = data / "annotations" / "instances_train.json"
    train(images, tmp_path / "run", augment=mixed, show_batches=True, **given)
    printed = capsys.readouterr().out
    assert said in printed
    assert said or "mixed" not in printed


def test_one_image_is_trained_on_mixed_with_itself(data, tmp_path):
    mixed = Augment(mosaic=1.0, mixup=1.0, copy_blend=1.0)
    images = data / "annotations" / "instances_train.json"
    assert len(rows(train(images, tmp_path / "run", epochs=1, val=15 / 16, augment=mixed))) == 1


def test_a_loss_that_is_not_finite_stops_with_the_batch_on_disk(data, tmp_path, monkeypatch):
    original = Dense.loss

    def broken(self, raw, batch):
        losses = original(self, raw, batch)
        broken.calls += self.training
        return losses | {"giou": losses["giou"] * float("nan")} if broken.calls == 6 else losses

    broken.calls = 0
    monkeypatch.setattr(Dense, "loss", broken)
    with pytest.raises(UserError, match=r"not finite at step 6 .*giou.*not-finite-step-6"):
        train(data, tmp_path / "run")
    assert (tmp_path / "run" / "not-finite-step-6.safetensors").is_file()
    assert (tmp_path / "run" / "state.safetensors").is_file()


def test_a_folder_that_cannot_be_written_is_named_before_any_work(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="file is a file, not a folder; give another --out"):
        train(tmp_path / "no data", tmp_path / "file" / "run")


def test_another_run_is_never_overwritten_nor_resumed_with_other_settings(data, finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    before = (out / "best.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"holds a run already .*; add --resume"):
        train(data, out, epochs=1)
    differs = r"begun with other settings, --optim.weight-decay 0.05 and not 0.5; leave them out"
    with pytest.raises(UserError, match=f"{differs}, or give another --out"):
        train(data, out, epochs=2, resume=True, optim=Optim(weight_decay=0.5))
    with pytest.raises(UserError, match=r"settings, --model dense and not detr[,;] ") as error:
        train(data, out, model="detr", epochs=2, resume=True)
    assert not any(f"--{name} " in str(error.value) for name in ADJUSTABLE)
    assert (out / "best.safetensors").read_bytes() == before
    assert yaml.safe_load((out / "config.yaml").read_text())["epochs"] == 1
    (out / "config.yaml").unlink()
    with pytest.raises(UserError, match="begun with other settings or data"):
        train(data, out, batch_size=2, resume=True)


def test_epochs_follow_the_images_and_a_resumed_run_keeps_its_own(data, tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "FEWEST_EPOCHS", 1)
    monkeypatch.setattr(recipes, "MOST_EPOCHS", 2)
    out = train(data, tmp_path / "run", epochs=None)
    assert yaml.safe_load((out / "config.yaml").read_text())["epochs"] == 2
    assert len(rows(out)) == 2 * 4
    monkeypatch.setattr(recipes, "MOST_EPOCHS", 3)
    assert train(data, out, epochs=None, resume=True) == out
    assert len(rows(out)) == 2 * 4
    train(data, out, epochs=3, resume=True)
    assert len(rows(out)) == 3 * 4


def test_a_run_of_a_version_that_mixed_nothing_is_resumed_without_mixing(data, finished, tmp_path, monkeypatch):
    out = shutil.copytree(finished, tmp_path / "run")
    assert not set(MIXING) & set(yaml.safe_load((out / "config.yaml").read_text())["augment"])
    dense = recipes.RECIPES["dense"]
    mixed = replace(dense.augment, mosaic=0.5)
    monkeypatch.setitem(recipes.RECIPES, "dense", replace(dense, augment=mixed))
    train(data, out, epochs=1, resume=True)
    with pytest.raises(UserError, match=r"other settings, --augment.mosaic none and not 0.2, --augment.mixup none"):
        train(data, out, epochs=1, resume=True, augment=Augment(mosaic=0.2))


def test_a_run_is_not_resumed_with_other_data(data, tmp_path):
    changed = tmp_path / "changed.json"
    content = json.loads((data / "annotations" / "instances_train.json").read_text())
    for image in content["images"]:
        image["file_name"] = str(data / "train" / image["file_name"])
    changed.write_text(json.dumps(content))
    out = train(changed, tmp_path / "run", epochs=1)
    content["annotations"][0]["bbox"][2] -= 2
    changed.write_text(json.dumps(content))
    with pytest.raises(UserError, match="begun with other data: images, boxes or classes have changed since; put back"):
        train(changed, out, epochs=1, resume=True)


def test_settings_of_a_run_are_the_arguments_of_train():
    arguments = {p.name: p.default for p in inspect.signature(boxwright.train).parameters.values()}
    settings = RunConfig(Path("data"))
    assert list(arguments) == [*settings.as_dict(), "recipe", "resume", "show_batches"]
    assert all(getattr(settings, f.name) == arguments[f.name] for f in fields(settings)[1:])


def test_given_weights_decide_the_shape(data, finished, tmp_path):
    with pytest.raises(UserError, match="is test_efficientnet, not test_resnet; leave --backbone out"):
        train(data, tmp_path / "second", weights=finished, backbone="test_resnet")
    with pytest.raises(UserError, match="is not of size small; leave --size out"):
        train(data, tmp_path / "second", weights=finished, size="small")
    with pytest.raises(UserError, match="is a dense, not a pix2seq; leave --model out"):
        train(data, tmp_path / "second", weights=finished, model="pix2seq")


def test_weights_without_their_state_are_not_written_over(data, tmp_path):
    (tmp_path / "best.safetensors").write_text("precious")
    with pytest.raises(UserError, match=r"\(best.safetensors\), but no state.* --weights .*best to begin"):
        train(data, tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("best.safetensors", "precious")]


def test_names_and_folders_with_brackets_train_and_are_shown_whole(data, tmp_path, capsys):
    content = json.loads((data / "annotations" / "instances_train.json").read_text())
    for category, name in zip(content["categories"], ("a[/c]", "[red] b/ü"), strict=True):
        category["name"] = name
    for image in content["images"]:
        image["file_name"] = str(data / "train" / image["file_name"])
    (tmp_path / "odd.json").write_text(json.dumps(content))
    out = train(str(tmp_path / "odd.json"), str(tmp_path / "run [/x]"), epochs=1)
    output = capsys.readouterr().out
    assert "classes: a[/c], [red] b/ü" in output
    assert str(out / "best.safetensors") in output
    assert boxwright.load(out / "best", device="cpu").names == ("a[/c]", "[red] b/ü")


def test_what_stopped_a_run_is_reported_even_if_its_curves_cannot_be_drawn(data, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("boxwright.training.run.charts.curves", refuse)
    monkeypatch.setattr("boxwright.training.loop.save_detector", lambda *_: require(False, "stopped"))
    with pytest.raises(UserError, match="stopped"):
        train(data, tmp_path / "run", epochs=1)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"seed": -1}, "--seed"), ({"seed": 2**63}, "--seed"), ({"optim": Optim(lr=-1.0)}, "--optim.lr"),
        ({"augment": Augment(views=0)}, "augment.views"), ({"augment": Augment(flip=2.0)}, "augment.flip"),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused_before_anything_is_written(data, tmp_path, settings, named):
    with pytest.raises(UserError, match=named):
        train(data, tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_a_run_may_live_in_a_thread(data, tmp_path):
    with ThreadPoolExecutor(1) as pool:
        assert (pool.submit(train, data, tmp_path / "run", epochs=1).result() / "best.safetensors").is_file()


def test_a_date_can_be_a_seed(data, tmp_path):
    assert len(rows(train(data, tmp_path / "run", epochs=1, seed=20261121))) == 4

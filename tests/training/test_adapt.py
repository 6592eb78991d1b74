"""The command `train` with `--adapt`: whole runs on top of a trained detector."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open

import boxwright
from boxwright.checkpoints.detector_file import load_detector, save_detector
from boxwright.config import UserError
from boxwright.models.dense import Dense, DenseConfig
from boxwright.training.run_logger import RunLogger
from helpers.training_runs import rows, train


def header(file: Path) -> dict[str, str]:
    return safe_open(file, framework="pt").metadata()


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    detector = Dense(DenseConfig("test_efficientnet", 64, channels=32), ("disc", "cell"), pretrained=False)
    file = tmp_path_factory.mktemp("base") / "base.safetensors"
    save_detector(file, detector, {})
    return file


def adapt(data, out, base, how, **more):
    return train(data, out, **{"backbone": None, "pretrained": True, "epochs": 1} | more, weights=base, adapt=how)


@pytest.mark.parametrize("how", ["lora", "head"])
def test_a_run_leaves_adapters_that_are_loaded_as_any_weights(data, base, tmp_path, capsys, how):
    out = adapt(data, tmp_path / "run", base, how, rank=2)
    output = capsys.readouterr().out
    assert ("adapters of rank 2" if how == "lora" else "the backbone frozen") in output
    assert "M parameters, 0." in output
    for name in ("best", "last"):
        assert header(out / f"{name}.safetensors")["format"] == "boxwright-adapter-1"
        assert (out / f"{name}.safetensors").stat().st_size < base.stat().st_size
    card = load_detector(out).card
    assert card["settings"]["adapt"] == how
    assert len(card["settings"]["base"]) == 64
    assert yaml.safe_load((out / "config.yaml").read_text())["rank"] == 2
    before, after = (load_detector(weights).state_dict() for weights in (base, out))
    moved = [key for key in before if key.startswith("backbone.") and not torch.equal(before[key], after[key])]
    assert bool(moved) == (how == "lora")
    assert not any(key.startswith("backbone.net.conv_stem") for key in moved), (
        "the stem would not learn in full, either"
    )


@pytest.mark.slow
def test_an_adapter_scores_as_it_did_in_training(data, base, tmp_path):
    out = adapt(data, tmp_path / "run", base, "lora", epochs=2)
    found = boxwright.evaluate(out, data, out=tmp_path / "seen", device="cpu")
    assert found.ap == pytest.approx(load_detector(out).card["val_ap"], abs=1e-3)


@pytest.mark.slow
def test_an_adapter_that_was_interrupted_goes_on_exactly(data, base, tmp_path, monkeypatch):
    whole = adapt(data, tmp_path / "whole", base, "lora", epochs=2)
    step = RunLogger.step

    def stop(self, number, *given):
        step(self, number, *given)
        if number == 6:
            raise RuntimeError("killed")

    monkeypatch.setattr(RunLogger, "step", stop)
    with pytest.raises(RuntimeError, match="killed"):
        adapt(data, tmp_path / "killed", base, "lora", epochs=2)
    monkeypatch.setattr(RunLogger, "step", step)
    killed = adapt(data, tmp_path / "killed", base, "lora", epochs=2, resume=True)
    assert rows(killed) == rows(whole)
    states = [load_detector(run / "last").state_dict() for run in (whole, killed)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.slow
def test_a_run_over_a_base_that_has_changed_is_not_resumed(data, base, tmp_path):
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(base.read_bytes())
    out = adapt(data, tmp_path / "run", copy, "head")
    other = load_detector(base)
    with torch.no_grad():
        other.pyramid.lateral[0].weight.add_(1)
    save_detector(copy, other, {})
    with pytest.raises(UserError, match=r"begun with other data: .*, or the base that its adapters were trained on"):
        adapt(data, out, copy, "head", resume=True)


def test_what_cannot_be_adapted_is_refused_before_anything_is_written(data, base, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(UserError, match="adapts what is known, and this backbone begins at random; give --weights"):
        train(data, out, adapt="lora")
    with pytest.raises(UserError, match="--rank must be at least 1, not 0"):
        adapt(data, out, base, "lora", rank=0)
    with pytest.raises(UserError, match="no layer is large enough for an adapter of rank 999; take a smaller --rank"):
        adapt(data, out, base, "lora", rank=999)
    assert not out.exists()


@pytest.mark.slow
def test_an_adapter_is_no_base_but_can_be_trained_in_full(data, base, tmp_path):
    adapter = adapt(data, tmp_path / "first", base, "lora")
    with pytest.raises(UserError, match=r"is an adapter and can't be the base of another; merge it first: .*\.merge\("):
        adapt(data, tmp_path / "second", adapter, "head")
    whole = adapt(data, tmp_path / "second", adapter, "full")
    assert header(whole / "best.safetensors")["format"] == "boxwright-1"


@pytest.mark.slow
def test_a_backbone_of_timm_is_a_base(data, tmp_path):
    out = train(
        data, tmp_path / "run", backbone="tf_efficientnet_lite0", pretrained=True, epochs=1, adapt="lora", rank=4
    )
    assert json.loads(header(out / "best.safetensors")["base"])["name"] == "tf_efficientnet_lite0"
    assert load_detector(out).names == ("square", "disc")

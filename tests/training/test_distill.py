"""The command `distill`, and what a teacher adds to the loss."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

import boxwright
from boxwright.__main__ import main
from boxwright.checkpoints.detector_file import load_detector, save_detector
from boxwright.config import Optim, UserError
from boxwright.models import registry
from boxwright.models.dense import Dense, DenseConfig
from boxwright.training.teacher import Teacher, attention_loss, paired_cells, sampled, with_pseudo_labels
from boxwright.types import Predictions
from helpers.training_runs import COMMON, SETTINGS, rows


def make(names: tuple[str, ...] = ("square", "disc"), side: int = 64, seed: int = 0) -> Dense:
    torch.manual_seed(seed)
    return Dense(DenseConfig("test_efficientnet", side, channels=32, depth=1), names, pretrained=False)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    """A random one of 80 px, of one class of the data and another."""
    file = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_detector(file, make(("cell", "disc"), 80), {})
    return file


def distill(teacher, data, out, **more):
    return boxwright.distill(teacher, data, out=out, **SETTINGS | {"epochs": 2} | more)


@pytest.mark.slow
def test_a_distilled_run_names_its_teacher_and_can_be_repeated(teacher, data, tmp_path, capsys):
    before = teacher.read_bytes()
    out = distill(teacher, data, tmp_path / "run", epochs=1)
    assert f"taught by the dense of {teacher} (1 of 2 classes)" in capsys.readouterr().out
    assert yaml.safe_load((out / "config.yaml").read_text())["teacher"] == str(teacher)
    assert {"loss_attention", "loss_soft", "loss_soft_giou"} < set(rows(out)[0])
    student = load_detector(out)
    assert student.card["taught by"] == f"dense of {teacher}"
    assert len(student.card["settings"]["teacher"]) == 64
    plain = registry.build("dense", "nano", student.names, backbone="test_efficientnet", pretrained=False)
    assert student.state_dict().keys() == plain.state_dict().keys()
    assert teacher.read_bytes() == before
    for verb in ("train", "distill"):
        assert main([verb, "--config", str(out / "config.yaml"), "--out", str(tmp_path / verb)]) == 0
        assert rows(tmp_path / verb) == rows(out)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_exactly(teacher, data, tmp_path, monkeypatch):
    whole, stopped = distill(teacher, data, tmp_path / "whole"), tmp_path / "stopped"
    begun, moved = tmp_path / "begun.safetensors", tmp_path / "moved.safetensors"
    begun.write_bytes(teacher.read_bytes())
    original, calls = Teacher.losses, iter(range(100))

    def stop(*given):
        if next(calls) == 5:
            raise KeyboardInterrupt
        return original(*given)

    with monkeypatch.context() as patch:
        patch.setattr("boxwright.training.loop.SAVE_SECONDS", -1)
        patch.setattr(Teacher, "losses", stop)
        with pytest.raises(KeyboardInterrupt):
            distill(begun, data, stopped)
    begun.rename(moved)
    command = ["distill", str(moved), "--config", str(stopped / "config.yaml"), "--out", str(stopped), "--resume"]
    assert main(command) == 0
    assert rows(stopped) == rows(whole)
    weights = [load_detector(run / "last").state_dict() for run in (whole, stopped)]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    boxwright.train(data, out=stopped, resume=True)  # its own settings, the teacher among them
    assert rows(stopped) == rows(whole)
    save_detector(moved, make(("cell", "disc"), 80, seed=1), {})
    with pytest.raises(UserError, match="begun with another teacher"):
        distill(moved, data, stopped, resume=True)
    with pytest.raises(UserError, match="begun with another teacher"):
        boxwright.train(data, out=stopped, resume=True)


@pytest.mark.slow
def test_mixed_precision_teaches_too(teacher, data, tmp_path):
    out = distill(teacher, data, tmp_path / "run", epochs=1, precision="bf16-mixed")
    assert float(rows(out)[-1]["loss_soft"]) > 0


def test_mistakes_are_reported_before_anything_is_written(data, tmp_path, capsys):
    assert main(["distill", str(tmp_path / "none"), str(data), "--out", str(tmp_path / "run"), *COMMON]) == 2
    assert f"no weights at {tmp_path / 'none'}" in capsys.readouterr().err
    save_detector(tmp_path / "other.safetensors", make(("cat",)), {})
    with pytest.raises(UserError, match=r"knows none of the classes square, disc, but cat;"):
        distill(tmp_path / "other", data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_adapter_teaches_too(teacher, data, tmp_path):
    given = SETTINGS | {"backbone": None, "pretrained": True, "image_size": 80, "epochs": 1}
    adapter = boxwright.train(data, out=tmp_path / "adapter", weights=teacher, adapt="lora", rank=2, **given)
    out = distill(adapter, data, tmp_path / "run", epochs=1, optim=Optim(ema=0.0))
    assert float(rows(out)[-1]["loss_soft"]) > 0


def test_the_student_approaches_the_teacher(batch):
    batch = replace(batch, valid_BN=torch.zeros_like(batch.valid_BN))
    student, teacher = make(seed=1), Teacher(make(side=80).eval(), make())
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    optimizer = torch.optim.AdamW(student.parameters(), 1e-3)
    teacher.train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    history = []
    for _ in range(25):
        losses = teacher.losses(student, batch)
        history.append({name: value.item() for name, value in losses.items()})
        sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name in ("attention", "soft_giou"):
        assert history[-1][name] < 0.7 * history[0][name]
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


def test_classes_that_the_teacher_does_not_know_are_left_alone(batch):
    student, config = make(("disc", "square")), DenseConfig("test_efficientnet", 64, 32, 1, (4, 8, 16, 32))
    losses = Teacher(Dense(config, ("cat", "disc"), pretrained=False), student).losses(student, batch)
    losses["soft"].backward()
    gradient_K = student.head.many.weight.grad.flatten(1).abs().sum(1)
    assert gradient_K[0] > 0
    assert gradient_K[1] == 0


SEQUENCES = ["pix2seq", "patchseq"]


@pytest.mark.parametrize(
    ("kind", "few"),
    [
        *((kind, {"max_objects": 4, "proposals": 30}) for kind in SEQUENCES),
        *((kind, {"max_objects": 4, "proposals": 0, "encoder_layers": 1}) for kind in SEQUENCES),
        ("detr", {}),
        ("deformable", {}),
    ],
    ids=str,
)
def test_detectors_of_every_kind_teach_and_learn(batch, kind, few):
    network, _, sizes = registry.DETECTORS[kind]
    config = replace(sizes["nano"], backbone="test_efficientnet", image_size=64, **few)
    other = network(config, ("square", "disc"), pretrained=False).eval()
    predicts_cells = few.get("proposals", 0) > 0  # as `make()` does
    for teacher, student in ((other, make()), (make(), other), (other, other.train())):
        losses = Teacher(teacher, student).losses(student.requires_grad_(True).train(), batch)
        assert "attention" in losses
        assert ("soft" in losses) == predicts_cells
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        assert total.isfinite()


def test_maps_are_compared_within_the_valid_area():
    torch.manual_seed(0)
    own, other, sizes = torch.rand(2, 4, 8, 8), torch.rand(2, 6, 8, 8), torch.tensor([[64, 64], [32, 40]])
    loss = attention_loss([(own, other, 8)], sizes, 1.0)
    changed_own, changed_other = own.clone(), other.clone()
    changed_own[1, :, 4:], changed_other[1, :, :, 5:] = 9.0, 7.0
    assert torch.equal(attention_loss([(changed_own, changed_other, 8)], sizes, 1.0), loss)
    changed_own[1, :, 3, 4] = 9.0
    assert attention_loss([(changed_own, other, 8)], sizes, 1.0) != loss
    assert attention_loss([(own, torch.cat([3 * own, 3 * own], 1), 8)], sizes, 1.0) < 1e-6
    wide = own.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert attention_loss([(own, wide, 8)], sizes, 2.0) < 1e-6
    assert attention_loss([(own, own[:, :, :6], 8)], torch.tensor([[48, 64], [32, 40]]), 1.0) < 1e-6
    assert attention_loss([(0 * own, other, 8)], sizes, 1.0).isfinite()


def test_a_cell_learns_from_the_nearest_cell_of_the_teacher():
    shown, maps = [torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 4, 4)], [torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 2, 2)]
    own_BQX, other_BQX = torch.rand(2, 20, 3), torch.arange(2 * 80 * 3.0).view(2, 80, 3)
    both = [(0, 0, 8), (1, 1, 16)]
    assert all(torch.equal(x, other_BQX) for x in paired_cells(both, (other_BQX, shown), (other_BQX, shown), 1.0))
    own, nearest = paired_cells(both, (own_BQX, maps), (other_BQX, shown), 2.0)
    assert torch.equal(own, own_BQX)
    assert set(nearest[0, 0].tolist()) <= {float(n) for q in (0, 1, 8, 9) for n in range(3 * q, 3 * q + 3)}
    own, nearest = paired_cells([(0, 1, 16)], (own_BQX, maps), (other_BQX, shown), 1.0)
    assert torch.equal(own, own_BQX[:, :16])
    assert torch.equal(nearest, other_BQX[:, 64:])
    assert sampled(torch.ones(1, 1, 2, 4), (4, 4), 1.0, "nearest")[0, 0, 2:].sum() == 0


def test_only_objects_that_nobody_annotated_become_pseudo_labels(batch):
    found = Predictions(
        torch.tensor([
            [[0.1, 0.1, 0.4, 0.48], [0.0, 0.6, 0.2, 0.9], [0.0, 0.6, 0.2, 0.8], [0.7, 0.0, 0.9, 0.2]],
            [[0.8, 0.1, 0.9, 0.3], [0.2, 0.1, 0.3, 0.2], [0.0, 0.5, 0.2, 0.6], [0.4, 0.5, 0.5, 0.6]],
        ]),
        torch.tensor([[0.9, 0.8, 0.4, 0.7], [0.9, 0.8, 0.6, 0.1]]),
        torch.tensor([[1, 1, 1, 0], [1, 2, 2, 2]]),
    )  # fmt: skip
    more = with_pseudo_labels(batch, found, ("unknown", "square", "disc"), ("disc", "square"))
    assert more.valid_BN.tolist() == [[True] * 4, [True] * 4]
    assert torch.equal(more.boxes_BN4[0], torch.cat([batch.boxes_BN4[0], found.boxes_BD4[0, 1:2]]))
    assert more.labels_BN.tolist() == [[0, 1, 1, 1], [1, 1, 0, 0]]
    assert torch.equal(more.boxes_BN4[1, 1:], found.boxes_BD4[1, :3])


def test_of_two_overlapping_detections_the_better_becomes_a_pseudo_label(batch):
    box, beside = [0.0, 0.6, 0.2, 0.9], [0.0, 0.6, 0.21, 0.9]
    found = Predictions(
        torch.tensor([[box, beside, [0.7, 0.0, 0.9, 0.2]]] * 2), torch.tensor([[0.9, 0.8, 0.7]] * 2),
        torch.tensor([[0, 0, 0], [2, 0, 0]]),
    )  # fmt: skip
    more = with_pseudo_labels(batch, found, ("disc", "square", "unknown"), ("disc", "square"))
    assert more.valid_BN.sum(1).tolist() == [5, 3]
    assert torch.equal(more.boxes_BN4[0, 3:], found.boxes_BD4[0, ::2])
    assert torch.equal(more.boxes_BN4[1, 1:3], found.boxes_BD4[1, 1:])  # of a class that isn't taught: not in the way


def test_without_objects_and_pseudo_labels_one_empty_row_stays(batch):
    nothing = replace(batch, valid_BN=torch.zeros_like(batch.valid_BN))
    found = Predictions(torch.rand(2, 5, 4), torch.zeros(2, 5), torch.zeros(2, 5, dtype=torch.int64))
    more = with_pseudo_labels(nothing, found, ("a",), ("a", "b"))
    assert more.boxes_BN4.tolist() == [[[0.0] * 4]] * 2
    assert not more.valid_BN.any()
    student = make()
    losses = Teacher(make(seed=1), student).losses(student, nothing)
    assert all(value.isfinite() for value in losses.values())

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from boxwright.__main__ import main
from boxwright.checkpoints.detector_file import save_detector
from boxwright.comparison import compare as verb
from boxwright.comparison import plan
from boxwright.comparison.compare import compare
from boxwright.comparison.cost import measure, training_cost
from boxwright.comparison.settings import SharedSettings, chosen, trainable, usual_image_size
from boxwright.config import UserError
from boxwright.models import registry
from boxwright.training.config import RunConfig
from boxwright.training.recipes import recipe

COST = {"step_seconds": 1.0, "steps": 50, "end_seconds": 10.0, "training_mib": 900.0}  # an epoch is a minute
SPEED = {"latency_ms": 12.0, "detection_mib": 500.0, "parameters": 3_000_000}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """16 dark images with a white square, half of them to validate on, in COCO form."""
    root, random = tmp_path_factory.mktemp("squares"), np.random.default_rng(0)
    for split in ("train", "val"):
        images, annotations = [], []
        for number in range(1, 9):
            canvas, (x, y) = Image.new("RGB", (64, 48), (20, 30, 40)), random.integers(0, 28, 2).tolist()
            canvas.paste("white", (x, y, x + 20, y + 20))
            (root / split).mkdir(exist_ok=True)
            canvas.save(root / split / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 48})
            annotations.append({"id": number, "image_id": number, "category_id": 1, "bbox": [x, y, 20, 20]})
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "a <square>"}]}
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("BOXWRIGHT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def quick(monkeypatch, no_charts) -> list[tuple[str, int, bool]]:
    """Everything but the measuring and the training, which would take minutes; returns the calls of `run`."""
    calls = []

    def run(config: RunConfig, resume: bool) -> None:
        calls.append((config.model, config.epochs, resume))
        detector = registry.build(
            "dense",
            "nano",
            ("a <square>",),
            image_size=config.image_size,
            backbone="test_efficientnet",
            pretrained=False,
        )
        save_detector(config.out / "last.safetensors", detector, {})
        (config.out / "metrics.csv").write_text("step,epoch,lr,loss\n1,1.0,0.001,2.0\n")

    monkeypatch.setattr(verb, "run", run)
    monkeypatch.setattr(plan, "measure", lambda *_: dict(COST))
    monkeypatch.setattr(verb, "measure", lambda *_: dict(SPEED))
    monkeypatch.setattr(verb, "curve", lambda run: [(60.0, 0.1), (120.0, 0.2)])
    return calls


def test_every_detector_of_the_size_can_be_compared():
    assert trainable("nano") == [model for model, (_, _, sizes) in registry.DETECTORS.items() if "nano" in sizes]
    assert chosen(None, "nano") == trainable("nano")
    assert chosen("detr, dense", "nano") == chosen(["detr", "dense"], "nano") == ["detr", "dense"]
    assert usual_image_size("nano") == 320


def test_a_budget_in_minutes_becomes_epochs_for_each(data, quick, tmp_path, capsys):
    done = compare(data, "dense,detr", minutes=3.5, image_size=64, out=tmp_path, device="cpu")
    assert quick == [("dense", 3, False), ("detr", 3, False)]
    assert {row.model for row in done.rows} == {"dense", "detr"}
    assert done.rows[0].ap >= done.rows[1].ap
    assert done.exit_code == 0
    stored = json.loads((tmp_path / "comparison.json").read_text())
    assert stored["rows"][0]["cost"] | COST | SPEED == stored["rows"][0]["cost"]
    page = (tmp_path / "index.html").read_text()
    assert "Which detector for" in page
    assert "a &lt;square&gt;" in page
    assert len(re.findall("<figure>", page)) == 6 * 3
    assert "dense" in capsys.readouterr().out


def test_what_is_done_is_not_done_again_and_detectors_may_be_added(data, quick, tmp_path):
    settings = {"epochs": 2, "image_size": 64, "out": tmp_path, "device": "cpu"}
    first = compare(data, "dense", **settings)
    second = compare(data, "dense,detr", resume=True, **settings)
    assert quick == [("dense", 2, False), ("detr", 2, False)]
    assert {row.model: row.stats for row in second.rows}["dense"] == first.rows[0].stats


def test_an_interrupted_training_goes_on_where_it_stopped(data, quick, tmp_path, monkeypatch):
    settings = {"epochs": 2, "image_size": 64, "out": tmp_path, "device": "cpu"}
    whole = verb.run

    def stop(config, resume) -> None:
        (config.out / "best.safetensors").write_bytes(b"written before the first state")
        (config.out / "state.safetensors").write_bytes(b"a state")
        raise KeyboardInterrupt

    monkeypatch.setattr(
        verb, "run", lambda config, resume: (whole if config.model == "dense" else stop)(config, resume)
    )
    (tmp_path / "detr").mkdir()
    with pytest.raises(KeyboardInterrupt):
        compare(data, "dense,detr", **settings)
    monkeypatch.setattr(verb, "run", whole)
    compare(data, "dense,detr", resume=True, **settings)
    assert quick == [("dense", 2, False), ("detr", 2, True)]


def test_what_was_killed_before_its_first_state_begins_anew(data, quick, tmp_path):
    settings = {"epochs": 1, "image_size": 64, "out": tmp_path, "device": "cpu"}
    compare(data, "dense", **settings)
    for name in ("result.json", "last.safetensors"):
        (tmp_path / "dense" / name).unlink()
    (tmp_path / "dense" / "best.safetensors").write_bytes(b"")
    compare(data, "dense", resume=True, **settings)
    assert quick == [("dense", 1, False)] * 2
    assert not (tmp_path / "dense" / "best.safetensors").exists()


def test_one_that_fails_is_named_and_the_others_compared(data, quick, tmp_path, monkeypatch):
    whole = verb.run

    def run(config, resume) -> None:
        if config.model == "detr":
            raise UserError("the loss is not finite.")
        whole(config, resume)

    monkeypatch.setattr(verb, "run", run)
    done = compare(data, "dense,detr", epochs=1, image_size=64, out=tmp_path, device="cpu")
    assert done.failed == {"detr": "the loss is not finite."}
    assert done.exit_code == 1
    assert "detr failed: the loss is not finite." in (tmp_path / "index.html").read_text()


def test_one_that_has_learned_nothing_says_what_to_try(data, quick, tmp_path, monkeypatch):
    monkeypatch.setattr(verb, "NOTHING", 1.0)
    done = compare(data, "dense", epochs=1, image_size=64, out=tmp_path, device="cpu")
    hints = json.loads((tmp_path / "dense" / "result.json").read_text())["hints"]
    assert hints == done.rows[0].hints
    usual = recipe("dense").epochs_for(8)
    assert f"1 step is few (1 of the usual {usual} epochs): --epochs 100" in hints
    assert not any("--model" in hint for hint in hints)


def test_a_budget_too_small_for_one_epoch_says_how_much_is_needed(data, quick, tmp_path):
    with pytest.raises(UserError, match=r"--minutes 0.5 is too little for one epoch.*dense 1.0.*give --minutes 1.1"):
        compare(data, "dense,detr", minutes=0.5, image_size=64, out=tmp_path, device="cpu")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"models": "dens"}, "no detector 'dens' of size nano (did you mean 'dense'?)"),
        ({"models": "dense,dense"}, "each detector once"),
        ({"models": "replication"}, "no detector 'replication'"),
        ({"size": "nan"}, "did you mean 'nano'?"),
        ({"minutes": 1, "epochs": 1}, "not both"),
        ({"minutes": 0}, "--minutes must be over 0"),
        ({"epochs": 0}, "--epochs must be at least 1"),
        ({"resume": True}, "nothing to resume"),
    ],
)
def test_a_mistake_is_one_clear_line(data, quick, tmp_path, given, message):
    with pytest.raises(UserError) as error:
        compare(data, **{"out": tmp_path, "device": "cpu"} | given)
    assert message in str(error.value)


def test_a_comparison_is_neither_overwritten_nor_resumed_with_other_settings(data, quick, tmp_path):
    settings = {"models": "dense", "epochs": 1, "image_size": 64, "out": tmp_path, "device": "cpu"}
    compare(data, **settings)
    with pytest.raises(UserError, match="holds a comparison already"):
        compare(data, **settings)
    with pytest.raises(UserError, match="begun with --image-size 64 and not 96, --seed 0 and not 1"):
        compare(data, **settings | {"image_size": 96, "seed": 1}, resume=True)
    stored = json.loads((tmp_path / "plan.json").read_text())
    for name in ("mosaic", "mixup", "copy_blend", "mixed_until"):  # as an earlier version wrote it
        del stored["terms"]["augment"][name]
    (tmp_path / "plan.json").write_text(json.dumps(stored))
    compare(data, **settings, resume=True)
    (tmp_path / "plan.json").write_text(json.dumps(stored | {"data": "another"}))
    with pytest.raises(UserError, match="has changed since"):
        compare(data, **settings, resume=True)
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        compare(data, **settings, resume=True)


@pytest.mark.slow
def test_the_whole_way(data, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out, arguments = tmp_path / "out", ["--models", "dense", "--epochs", "2", "--image-size", "64", "--device", "cpu"]
    assert main(["compare", str(data), *arguments, "--out", str(out)]) == 0
    (row,) = json.loads((out / "comparison.json").read_text())["rows"]
    assert len(row["curve"]) == 2
    assert row["curve"][0][0] < row["curve"][1][0]
    assert 0 < row["cost"]["latency_ms"] < 60_000
    assert row["cost"]["training_mib"] > 100
    assert row["cost"]["parameters"] > 1e6
    settings = SharedSettings(
        **json.loads((out / "plan.json").read_text())["terms"] | {"data": str(tmp_path / "nowhere")}
    )
    with pytest.raises(UserError, match="nowhere does not exist"):
        measure(training_cost, settings, "dense")

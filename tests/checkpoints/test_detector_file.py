import errno
import pickle
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from boxwright.checkpoints.detector_file import load_detector, save_detector
from boxwright.checkpoints.header import store_in_card
from boxwright.checkpoints.locate import find_weights
from boxwright.checkpoints.lora import checksum
from boxwright.config import UserError
from boxwright.files import write_whole
from boxwright.models import registry
from boxwright.thresholds import Thresholds
from boxwright.training import recipes


@pytest.fixture
def detector():
    return registry.build(
        "dense", "nano", ("cat", "dog"), image_size=96, backbone="test_efficientnet", pretrained=False
    )


def test_round_trip_keeps_weights_names_and_card(detector, tmp_path):
    save_detector(tmp_path / "best.safetensors", detector, {"epoch": 3})
    for path in (tmp_path, tmp_path / "best", tmp_path / "best.safetensors"):
        loaded = load_detector(path)
        assert loaded.names == ("cat", "dog")
        assert loaded.card == {"epoch": 3}
        assert loaded.config == detector.config
        for key, value in detector.state_dict().items():
            assert torch.equal(value, loaded.state_dict()[key])


def test_a_threshold_stored_later_changes_no_weight(detector, tmp_path):
    save_detector(tmp_path / "best.safetensors", detector, {"epoch": 3})
    with safe_open(tmp_path / "best.safetensors", "pt") as stored:
        before = stored.metadata()["checksum"]
    store_in_card(tmp_path / "best.safetensors", Thresholds(0.3, {"cat": 0.25}, "x").to_card())
    loaded = load_detector(tmp_path)
    assert Thresholds.from_card(loaded.card).of(loaded.names) == [0.25, 0.3]
    assert loaded.card["epoch"] == 3
    assert checksum(loaded.state_dict()) == before
    assert "thresholds" not in loaded.with_classes(("cat", "new")).card


def test_a_checkpoint_cut_short_is_refused(detector, tmp_path):
    file = tmp_path / "best.safetensors"
    save_detector(file, detector, {})
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="cut short"):
        load_detector(file)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_are_named(detector, tmp_path, value):
    key = next(key for key in detector.state_dict() if key.startswith("pyramid.") and key.endswith("weight"))
    detector.state_dict()[key].view(-1)[7] = value
    save_detector(tmp_path / "best.safetensors", detector, {})
    with pytest.raises(UserError, match=f"numbers that are none .*, first in {re.escape(key)}"):
        load_detector(tmp_path)


@pytest.mark.parametrize("save", [lambda x, f: torch.save(x, f), lambda x, f: f.write_bytes(pickle.dumps(x))])
def test_a_pickle_is_never_opened(tmp_path, save):
    file = tmp_path / "model.pth"
    save({"weight": [1.0]}, file)
    with pytest.raises(UserError, match="pickle"):
        load_detector(file)


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "best.safetensors")
    with pytest.raises(UserError, match="not a boxwright checkpoint"):
        load_detector(tmp_path)


@pytest.mark.parametrize(
    "header",
    [{"names": "3"}, {"config": "{"}, {"config": '{"foo": 1}'}, {"config": "[]"}, {"card": "}"}, {"names": None}],
)
def test_a_damaged_header_is_one_clear_error(detector, tmp_path, header):
    file = tmp_path / "best.safetensors"
    save_detector(file, detector, {})
    with safe_open(file, framework="pt") as stored:
        stored_header = {key: value for key, value in stored.metadata().items() if key != "header_crc32"}
    facts = {key: value for key, value in (stored_header | header).items() if value is not None}
    save_file(detector.state_dict(), file, metadata=facts)
    with pytest.raises(UserError, match=r"^.*best.safetensors does not fit .*damaged .*$"):
        load_detector(file)


def test_unknown_detectors_and_sizes_are_named():
    with pytest.raises(UserError, match="did you mean 'dense'"):
        recipes.recipe("dens")
    with pytest.raises(UserError, match="size can't be 'tiny', it must be one of: nano"):
        registry.build("dense", "tiny", ("a",))


def test_missing_weights_say_what_to_give(tmp_path):
    with pytest.raises(UserError, match="no weights at"):
        find_weights(tmp_path / "nothing")


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path):
    file = tmp_path / "best.safetensors"
    file.write_text("old")

    def write(temporary):
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match="No space left"):
        write_whole(file, write)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_an_output_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be written"):
        write_whole(tmp_path / "file" / "best.safetensors", lambda temporary: temporary.write_text("x"))


@pytest.mark.parametrize(
    ("files", "given", "named"),
    [
        (["stable.pth"], "stable.pth", "stable.pth"),
        (["stable.pth"], "stable", "stable.pth"),
        (["ckpt-6.index", "ckpt-6.data-00000-of-00001"], "ckpt-6.index", "ckpt-6.index"),
        (["ckpt-6.index", "ckpt-6.data-00000-of-00001"], "ckpt-6", "ckpt-6"),
        (["run/ckpt-6.index", "run/ckpt-6.data-00000-of-00001", "run/config.json"], "run", "run"),
        (["foreign/config.json", "foreign/model.safetensors"], "foreign", "foreign"),
        (["foreign/config.json", "foreign/pytorch_model.bin"], "foreign", "foreign"),
    ],
)
def test_checkpoints_of_other_projects_point_to_import_weights(tmp_path, files, given, named):
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        torch.save({"weight": torch.zeros(1)}, tmp_path / file)
    with pytest.raises(UserError) as error:
        load_detector(tmp_path / given)
    assert f"`boxwright import-weights {tmp_path / named}" in str(error.value)


def test_foreign_tensors_point_to_import_weights(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(
        UserError, match=r"not a boxwright checkpoint.*`boxwright import-weights .*model.safetensors OUT`"
    ):
        load_detector(tmp_path / "model.safetensors")


def test_an_empty_folder_does_not_point_to_import_weights(tmp_path):
    with pytest.raises(UserError) as error:
        load_detector(tmp_path)
    assert "import-weights" not in str(error.value)


def test_weights_may_lie_in_the_current_folder(detector, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no weights at"):
        load_detector("")
    save_detector(tmp_path / "best.safetensors", detector, {})
    assert load_detector(".").names == ("cat", "dog")


def test_an_exported_file_is_no_checkpoint(tmp_path):
    for name in ("model.onnx", "renamed"):
        (tmp_path / name).write_bytes(b"\x08\x0a\x12\x07pytorch")
        with pytest.raises(
            UserError, match=f"{name} is an exported file: `predict` and `serve` take it; .* checkpoint"
        ):
            find_weights(tmp_path / name)
    for path in (tmp_path, tmp_path / "model"):
        with pytest.raises(UserError, match=r"no weights at .*model\.onnx is an exported file"):
            find_weights(path)

"""When `evaluate` changes a weights file, and when not."""

import json
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from boxwright.checkpoints.header import read_header
from boxwright.config import UserError
from boxwright.evaluation.store import require_own_file, store_thresholds
from boxwright.thresholds import Thresholds

BEST = Thresholds(0.3, {"cat": 0.25}, "9 images")
OLD = Thresholds(0.6, {}, "other images")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_file({"a": torch.zeros(3)}, tmp_path / "w.safetensors", {"format": "boxwright-1", "card": '{"epoch": 3}'})
    return tmp_path / "w.safetensors"


def stored(weights: Path) -> Thresholds:
    return Thresholds.from_card(json.loads(read_header(weights)["card"]))


@pytest.mark.parametrize(
    ("before", "split", "store", "reason"),
    [
        (Thresholds(), "val", None, None),
        (Thresholds(), "all", None, None),
        (Thresholds(), "test", None, "split test are not for choosing"),
        (Thresholds(), "train", None, "split train are not for choosing"),
        (Thresholds(), "val", False, "as asked"),
        (OLD, "val", None, "they have their own; --store true replaces those"),
        (OLD, "val", True, None),
        (Thresholds(), "test", True, None),
    ],
)
def test_a_file_is_filled_and_only_changed_if_asked(weights, before, split, store, reason):
    kept = store_thresholds(weights, BEST, before, split, store)
    assert kept is None if reason is None else reason in kept
    assert stored(weights) == (BEST if reason is None else Thresholds())


def test_without_a_choice_nothing_is_written(weights):
    content = weights.read_bytes()
    assert "no choice" in store_thresholds(weights, None, Thresholds(), "val", True)
    assert weights.read_bytes() == content


def test_a_file_that_cannot_be_written_is_an_error_only_if_it_was_asked_for(weights, monkeypatch):
    def refuse(*_):
        raise UserError("w can't be written: full.")

    monkeypatch.setattr("boxwright.evaluation.store.store_in_card", refuse)
    assert store_thresholds(weights, BEST, Thresholds(), "val", None) == "w can't be written: full"
    with pytest.raises(UserError, match="full"):
        store_thresholds(weights, BEST, Thresholds(), "val", True)


def test_a_file_of_the_hub_is_left_alone(monkeypatch):
    assert "the hub" in store_thresholds("hf://owner/name", BEST, Thresholds(), "val", None)
    with pytest.raises(UserError, match="copy it"):
        require_own_file("hf://owner/name", True)
    require_own_file("hf://owner/name", None)


def test_the_folder_of_a_run_means_its_best(weights):
    weights.rename(weights.with_name("best.safetensors"))
    assert store_thresholds(weights.parent, BEST, Thresholds(), "val", None) is None
    best = weights.with_name("best.safetensors")
    assert stored(best) == BEST
    assert stat.S_IMODE(best.stat().st_mode) == 0o644

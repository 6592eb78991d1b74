"""How long a run will take is said beforehand, and changes nothing in it."""

from datetime import datetime
from types import SimpleNamespace

import pytest

from boxwright.config import Optim
from boxwright.training import duration
from boxwright.training.duration import StepTimer, announce, estimate_validation, spell
from boxwright.training.loop import Loop
from boxwright.training.run_logger import RunLogger
from helpers.training_runs import rows, train


def timed(*seconds: float) -> StepTimer:
    timer = StepTimer(least=3, most=6, seconds=4.0)
    for each in seconds:
        timer.add(each)
    return timer


@pytest.mark.parametrize(
    ("seconds", "enough"),
    [([9.0, 9.0], False), ([1.0, 1.0, 1.0], False), ([2.0, 2.0, 2.0], True), ([0.1] * 5, False), ([0.1] * 6, True)],
)
def test_enough_steps_are_timed_after_some_seconds_or_many_steps(seconds, enough):
    assert timed(*seconds).enough is enough


def test_the_first_steps_do_not_count_unless_there_are_no_others():
    assert timed(9.0, 5.0, 1.0, 2.0, 3.0).step_seconds == 2.0
    assert timed(9.0, 5.0).step_seconds == 7.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "1 second"), (89.4, "89 seconds"), (90, "1.5 minutes"), (1440, "24 minutes"), (5399, "90 minutes"),
        (5400, "1.5 hours"), (34200, "10 hours"), (172800, "2 days"), (864000, "10 days"),
    ],
)  # fmt: skip
def test_durations_are_spelled_in_a_fitting_unit(seconds, text):
    assert spell(seconds) == text


def test_the_end_has_a_date_only_on_another_day():
    now = datetime(2026, 11, 27, 14, 8)
    assert announce(1440, "1 CPU core", now=now) == "about 24 minutes to go on this machine (1 CPU core), done at 14:32"
    assert announce(36000, "mps", sure=False, now=now).startswith("at most 10 hours to go on this machine (mps)")
    assert announce(36000, "mps", now=now).endswith("done at 2026-11-28 00:08")


@pytest.mark.parametrize(("first", "world", "expected"), [(1.0, 1, 10.0), (1.0, 4, 4.0), (3.0, 1, 15.0)])
def test_a_validation_is_estimated_from_one_batch(monkeypatch, first, world, expected):
    """33 images in batches of 8 are 5 batches; the second time takes 2 seconds, unless the first took too long."""
    clock = [0.0]
    taken = [2.0, first]

    def validate(detector, cache, batch_size, device, rank, world):
        assert len(range(rank, len(cache), world)) <= batch_size
        clock[0] += taken.pop()

    monkeypatch.setattr(duration, "validate", validate)
    monkeypatch.setattr(duration, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    cache: list = [None] * 33
    found = estimate_validation(None, cache, 8, "cpu", world)  # type: ignore[arg-type]
    assert found == expected


def test_a_run_says_it_once_and_a_resumed_one_what_is_left(data, tmp_path, monkeypatch, capsys):
    left = []
    monkeypatch.setattr(RunLogger, "duration", lambda self, step, seconds, text: left.append((step, seconds, text)))
    monkeypatch.setattr("boxwright.training.loop.estimate_validation", lambda *_: 100.0)
    monkeypatch.setattr(StepTimer, "step_seconds", 10.0)
    whole, save = train(data, tmp_path / "whole", epochs=3), Loop._save_state
    assert left[0][:2] == (4, 8 * 10 + 3 * 100)  # of 12 steps, four each epoch
    assert left[0][2].startswith("3 epochs of 4 steps: about 6.3 minutes to go on this machine (")

    def stop(loop: Loop) -> None:
        save(loop)
        raise KeyboardInterrupt

    monkeypatch.setattr(Loop, "_save_state", stop)
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "run", epochs=3)
    monkeypatch.setattr(Loop, "_save_state", save)
    train(data, tmp_path / "run", epochs=3, resume=True)
    assert [each[:2] for each in left] == [(4, 380), (4, 380), (8, 4 * 10 + 2 * 100)]
    assert rows(tmp_path / "run") == rows(whole)


@pytest.mark.slow
@pytest.mark.parametrize("ema", [0.0, 0.99])
def test_saying_it_changes_no_loss(data, tmp_path, monkeypatch, ema, capsys):
    settings = {"model": "deformable", "optim": Optim(ema=ema)}  # which draws noise in training and in validation
    monkeypatch.setattr("boxwright.training.loop.StepTimer", lambda: StepTimer(least=1, most=2))
    told = train(data, tmp_path / "told", **settings)
    assert "to go on this machine (" in capsys.readouterr().out
    monkeypatch.setattr(Loop, "_predict_duration", lambda *_: None)
    assert rows(told) == rows(train(data, tmp_path / "silent", **settings))

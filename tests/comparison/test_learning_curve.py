import time

import pytest
from torch.utils.tensorboard import SummaryWriter

from boxwright.comparison.learning_curve import curve


def part(run, steps, aps, late: float = 0.0) -> None:
    """A part of a run: `steps` and `aps` say when, in seconds after it began, each came."""
    now = time.time()
    for name, tag, events in (("train", "loss", steps), ("val", "ap", aps)):
        with SummaryWriter(str(run / "tensorboard" / name)) as writer:
            for step, (seconds, value) in events.items():
                writer.add_scalar(tag, value, step, walltime=now + seconds)


def test_each_validation_has_its_time(tmp_path):
    part(tmp_path, {1: (5, 9.0), 2: (9, 8.0), 3: (15, 7.0)}, {2: (10, 0.25), 3: (20, 0.5)})
    seconds, aps = zip(*curve(tmp_path), strict=True)
    assert seconds == pytest.approx((10, 20), abs=0.5)
    assert aps == (0.25, 0.5)


def test_a_pause_and_what_is_done_twice_count_once(tmp_path):
    steps = {1: (5, 9.0), 2: (9, 8.0), 3: (15, 7.0), 4: (19, 6.0), 5: (40, 5.0)}
    part(tmp_path, steps, {2: (10, 0.25), 4: (20, 0.5)})
    part(tmp_path, {3: (4, 7.0), 4: (8, 6.0)}, {4: (9, 0.5)})  # the state was that of step 2
    part(tmp_path, {5: (5, 5.0), 6: (7, 4.0)}, {6: (8, 0.75)})
    seconds, aps = zip(*curve(tmp_path), strict=True)
    assert seconds == pytest.approx((10, 19, 27), abs=0.5)
    assert aps == (0.25, 0.5, 0.75)


def test_a_part_that_ended_before_its_first_step_does_no_harm(tmp_path):
    part(tmp_path, {}, {})
    part(tmp_path, {1: (5, 9.0)}, {1: (6, 0.25)})
    assert [ap for _, ap in curve(tmp_path)] == [0.25]

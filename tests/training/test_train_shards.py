"""`train` on shards: the same run as on the data set itself, resumed exactly, and refused with other data."""

import pytest
import torch

import boxwright
from boxwright.config import UserError
from boxwright.data.shards.write import shard
from boxwright.training import loop
from boxwright.training.interrupt import Interrupt
from helpers.training_runs import rows, squares_and_discs, train


class AfterSomeSteps(Interrupt):
    """Ctrl-C in the third step of a run."""

    asked = 0

    @property
    def requested(self) -> bool:
        AfterSomeSteps.asked += 1
        return AfterSomeSteps.asked > 4  # twice a step


def weights(run) -> dict[str, torch.Tensor]:
    return boxwright.load(run / "last", device="cpu").detector.state_dict()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("BOXWRIGHT_CACHE", str(tmp_path / "cache"))


@pytest.mark.slow
def test_a_run_on_shards_is_that_on_the_data_and_resumes_exactly(tmp_path, monkeypatch):
    data = squares_and_discs(tmp_path)
    shards = shard(data, tmp_path / "shards")
    one, other = train(data, tmp_path / "one", epochs=1), train(shards, tmp_path / "other", epochs=1)
    assert rows(one) == rows(other)
    assert all(torch.equal(value, weights(other)[name]) for name, value in weights(one).items())
    monkeypatch.setattr(loop, "Interrupt", AfterSomeSteps)
    with pytest.raises(KeyboardInterrupt):
        train(shards, tmp_path / "stopped", epochs=1)
    monkeypatch.undo()
    monkeypatch.setenv("BOXWRIGHT_CACHE", str(tmp_path / "another"))
    monkeypatch.setattr("boxwright.data.loader.THREADS", 4)
    assert len(rows(tmp_path / "stopped")) < len(rows(one))
    assert rows(train(shards, tmp_path / "stopped", epochs=1, resume=True, cache="jpeg")) == rows(one)
    assert boxwright.evaluate(one / "last", shards, split="val", device="cpu").images == 8


def test_other_shards_are_refused(tmp_path):
    (tmp_path / "more").mkdir()
    data, more = squares_and_discs(tmp_path), squares_and_discs(tmp_path / "more", train=17)
    shards, others = shard(data, tmp_path / "shards"), shard(more, tmp_path / "others")
    run = train(shards, tmp_path / "run", epochs=1)
    with pytest.raises(UserError, match="was begun with other data"):
        train(others, run, epochs=1, resume=True)

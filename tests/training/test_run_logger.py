import csv
import errno
import threading

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from boxwright.config import UserError
from boxwright.training.run_logger import RunLogger, _rows_until


def note_steps(folder, count):
    with RunLogger(folder, count, 0, True) as logger:
        for step in range(1, count + 1):
            logger.step(step, 0.5, 1e-3, {"l1": 1.0}, 1.0)


def test_a_folder_or_file_in_the_way_is_named(tmp_path):
    (tmp_path / "a" / "metrics.csv").mkdir(parents=True)
    with pytest.raises(UserError, match=r"metrics.csv can't be written"), RunLogger(tmp_path / "a", 2, 0, True):
        pass
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "tensorboard").write_text("mine")
    hook = threading.excepthook
    with pytest.raises(UserError, match=r"tensorboard can't be written"):
        note_steps(tmp_path / "b", 1)
    assert threading.excepthook is hook
    assert (tmp_path / "b" / "tensorboard").read_text() == "mine"


def test_a_row_that_cannot_be_written_is_a_clear_error(tmp_path):
    with RunLogger(tmp_path, 3, 0, True) as logger:
        logger.step(1, 0.5, 1e-3, {"l1": 1.0}, 1.0)
        (tmp_path / "metrics.csv").unlink()
        (tmp_path / "metrics.csv").mkdir()
        with pytest.raises(UserError, match=r"metrics.csv can't be written: Is a directory"):
            logger.step(2, 1.0, 1e-3, {"l1": 1.0}, 1.0)


def test_a_full_disk_under_tensorboard_is_one_line(tmp_path, capfd, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", refuse)
    with pytest.raises(UserError, match=r"tensorboard can't be written: No space left"):
        note_steps(tmp_path, 1000)
    assert "Traceback" not in capfd.readouterr().err


def test_of_a_damaged_table_the_rows_that_can_be_read_are_kept(tmp_path):
    file = tmp_path / "metrics.csv"
    file.write_bytes(b"step,loss\n1,2.5\n\xff\xfe,3\n2,2.0\n3,1.5\n4")
    assert [row["step"] for row in _rows_until(file, 3)] == ["1", "2", "3"]
    file.write_bytes(b"\xff\xfe\x00")
    assert _rows_until(file, 3) == []


@pytest.mark.parametrize("likelihood", [None, -1.5])
def test_likelihood_stands_beside_ap_of_detectors_that_have_one(tmp_path, likelihood, capsys):
    with RunLogger(tmp_path, 3, 0, True) as logger:
        logger.step(1, 0.5, 1e-3, {"l1": 1.0}, 1.0)
        more = {} if likelihood is None else {"val_log_likelihood": likelihood}
        logger.validation(1, 1, {"val_ap": 0.25, "val_ap50": 0.5} | more, 2.0)
        logger.step(2, 0.5, 1e-3, {"l1": 1.0}, 1.0)
    with RunLogger(tmp_path, 3, 2, True) as logger:
        logger.step(3, 0.5, 1e-3, {"l1": 1.0}, 1.0)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert [row.get("val_log_likelihood") for row in rows] == ([None] * 3 if likelihood is None else ["-1.5", "", ""])
    assert [row["val_ap"] for row in rows] == ["0.25", "", ""]
    assert ("log-likelihood -1.500" in capsys.readouterr().out) == (likelihood is not None)


def test_a_validation_has_columns_and_charts_of_its_own(tmp_path):
    numbers = {"val_ap": 0.25, "val_ap50": 0.5, "val_ap_large": 0.3, "val_loss": 2.5, "val_loss_l1_1": 2.5}
    with RunLogger(tmp_path, 2, 0, True) as logger:
        for step in (1, 2):
            logger.step(step, step / 2, 1e-3, {"l1_1": 1.0}, 1.0)
        logger.validation(2, 1, numbers, 2.0)
    assert (tmp_path / "metrics.csv").read_text().splitlines()[0] == (
        "step,epoch,lr,loss,loss_l1_1,val_ap,val_ap50,val_ap_large,val_loss,val_loss_l1_1"
    )
    first, last = csv.DictReader((tmp_path / "metrics.csv").open())
    assert {name: first[name] for name in numbers} == dict.fromkeys(numbers, "")
    assert {name: float(last[name]) for name in numbers} == numbers
    tags = {part: scalars(tmp_path / "tensorboard" / part) for part in ("train", "val")}
    assert tags == {
        "train": {"epoch", "lr", "loss", "loss/l1_1"},
        "val": {"ap", "ap50", "ap_large", "loss", "loss/l1_1"},
    }


def scalars(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return set(events.Tags()["scalars"])

"""What a run shows and records: a progress bar, metrics.csv, TensorBoard events."""

import csv
import itertools
import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from boxwright.console import make_console
from boxwright.files import write_whole, writing

HEAD = ("step", "epoch", "lr", "loss")
TAIL = ("val_ap", "val_ap50")  # further columns of the validation as they come
LIKELIHOOD = "val_log_likelihood"


class RunLogger:
    """Records a run; on all processes but the first it shows and writes nothing.

    metrics.csv has one row per step: step, epoch, lr, loss and each term of the loss as ``loss_<name>``. The row of the
    last step of an epoch has the validation, too: val_ap, val_ap50, val_ap_small, val_ap_medium and val_ap_large
    (COCO's; empty without objects of the size), val_loss and its terms ``val_loss_<name>``, and, of sequence detectors,
    val_log_likelihood: the mean natural logarithm of the probability of each token of the annotated objects. Numbers
    are written with all their digits, so that two runs can be compared exactly.

    TensorBoard has training and validation as two runs, so that it draws their losses into one chart.

    Args:
        folder: of the run.
        total: steps of the whole run.
        done: steps done before it was resumed; rows of later steps are dropped.
        active: False on all processes but the first.
    """

    def __init__(self, folder: Path, total: int, done: int, active: bool):
        self.console = make_console(quiet=not active)
        self.active, self.file, self.folder = active, folder / "metrics.csv", folder / "tensorboard"
        self.rows = _rows_until(self.file, done) if active else []
        self.done = done
        self.events: dict[str, SummaryWriter] = {}
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not active or not self.console.is_terminal,
        )
        self.task = self.bar.add_task("training", total=total, completed=done, numbers="")
        self.ap = _scores(self.rows[-1] if self.rows else {})

    def __enter__(self) -> "RunLogger":
        with ExitStack() as stack:
            stack.enter_context(_quiet_writer())
            if self.active:
                self._rewrite()
                with writing(self.folder):
                    for part in ("train", "val"):
                        self.events[part] = SummaryWriter(str(self.folder / part), purge_step=self.done + 1)
            stack.enter_context(self.bar)
            self.stack = stack.pop_all()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self.stack, suppress(OSError) if error else writing(self.folder), ExitStack() as closing:
            for writer in self.events.values():
                closing.callback(writer.close)

    def step(self, step: int, epoch: float, lr: float, losses: dict[str, float], images_per_second: float) -> None:
        """Record one optimizer step."""
        if not self.active:
            return
        row = {"step": step, "epoch": round(epoch, 4), "lr": lr, "loss": sum(losses.values())}
        row |= {f"loss_{name}": value for name, value in losses.items()}
        self._append({key: repr(value) for key, value in row.items()})
        for key, value in row.items():
            if key != "step":
                self._chart("train", key, value, step)
        numbers = f"loss {row['loss']:.3f}  {self.ap}  {images_per_second:.1f} images/s  {_memory()}"
        self.bar.update(self.task, completed=step, numbers=numbers)

    def duration(self, step: int, seconds: float, text: str) -> None:
        """Show how long the rest of the run will take, and chart it as ``seconds_left`` of the training.

        Args:
            step: the last one done.
            seconds: that the rest will take.
            text: to show.
        """
        if self.active:
            self.console.print(text)
            self._chart("train", "seconds_left", seconds, step)

    def validation(self, step: int, epoch: int, numbers: dict[str, float], seconds: float) -> None:
        """Record the validation at the end of an epoch: the columns that begin with ``val_``."""
        if not self.active or not self.rows:  # none where metrics.csv of a resumed run is lost
            return
        self.rows[-1] |= {name: repr(value) for name, value in numbers.items()}
        for name, value in numbers.items():
            self._chart("val", name.removeprefix("val_"), value, step)
        self._rewrite()
        self.ap, loss = _scores(self.rows[-1]), float(self.rows[-1]["loss"])
        self.console.print(f"epoch {epoch:>3}  loss {loss:.3f}  {self.ap}  (validated in {seconds:.0f} s)")

    def _chart(self, part: str, name: str, value: float, step: int) -> None:
        with writing(self.folder):
            self.events[part].add_scalar(name.replace("loss_", "loss/"), value, step)

    def _append(self, row: dict[str, str]) -> None:
        self.rows.append(row)
        if len(self.rows) == 1:
            self._rewrite()
            return
        with writing(self.file), self.file.open("a", newline="") as stream:
            csv.DictWriter(stream, self.columns, restval="").writerow(row)

    def _rewrite(self) -> None:
        write_whole(self.file, self._write_rows)

    def _write_rows(self, file: Path) -> None:
        self.columns = _columns(self.rows)
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, self.columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows)


@contextmanager
def _quiet_writer() -> Iterator[None]:
    """Leave out the traceback of TensorBoard's thread when the disk is full: its next call raises the same error."""
    hook = threading.excepthook

    def report(thread: threading.ExceptHookArgs) -> None:
        if not issubclass(thread.exc_type, OSError):
            hook(thread)

    threading.excepthook = report
    try:
        yield
    finally:
        threading.excepthook = hook


def _scores(row: dict[str, str]) -> str:
    """The scores of the last validation, for the console."""
    columns = {"AP": "val_ap", "AP50": "val_ap50", "log-likelihood": LIKELIHOOD}
    return "  ".join(f"{name} {float(row[key]):.3f}" for name, key in columns.items() if row.get(key)) or "AP -"


def _columns(rows: list[dict[str, str]]) -> list[str]:
    losses = [key for key in (rows[0] if rows else {}) if key.startswith("loss_")]
    validated = dict.fromkeys(key for row in rows for key in row if key.startswith("val_"))
    return [*HEAD, *losses, *dict.fromkeys([*TAIL, *validated])]


def _rows_until(file: Path, step: int) -> list[dict[str, str]]:
    """The complete rows of an earlier part of the run, up to the step it is resumed from."""
    if not file.is_file() or step == 0:
        return []
    with file.open(newline="", errors="replace") as stream:  # of a damaged file, the rows that can be read
        rows = [row for row in csv.DictReader(stream) if None not in row.values() and row["step"].isdigit()]
    ends = [0, *itertools.accumulate((int(row["step"]) for row in rows), max)]
    return [row for row, end in zip(rows, ends, strict=False) if end < int(row["step"]) <= step]


def _memory() -> str:
    """Peak memory: of the GPU where there is one, else of the process."""
    if torch.cuda.is_available():
        return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.1f} GiB"

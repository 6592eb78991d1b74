"""The command `distill`: `train` with a teacher."""

from pathlib import Path
from typing import Any

from boxwright.models.registry import DetectorName, Size
from boxwright.training.run import train


def distill(
    teacher: Path | str,
    data: Path | str,
    model: DetectorName | None = None,
    size: Size | None = None,
    out: Path | str = Path("runs/distill"),
    *,
    resume: bool = False,
    show_batches: bool = False,
    **options: Any,
) -> Path:
    """Train a small detector on annotated images, with a large one as its teacher.

    The same as `train` with `--teacher`; all other options are those of `train`.

    Args:
        teacher: a checkpoint, adapters included, that knows some of the classes.
        data: a data set, in any format that boxwright reads (docs/data-formats.md).
        model: the detector to train; by default that of the teacher.
        size: its size; by default nano, or that of `weights`.
        out: folder of the run; it must not contain another run, unless with `resume`.
        resume: continue the run in `out` exactly where its state was saved.
        show_batches: only write `batches.png`, a picture of the first batch, into `out`; no training.
        options: further options of `train`.

    Returns:
        The run's folder, as `train` leaves it.
    """
    return train(data, model, size, out, teacher=teacher, resume=resume, show_batches=show_batches, **options)

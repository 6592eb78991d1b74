"""The verb `distill`: `train` with a teacher."""

from pathlib import Path
from typing import Any

from boxwright.config import DetectorName, Size
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
    """Train a small detector on annotated images and on what a large one sees and finds in them.

    All else is as `train` has it, which this is with `--teacher`.

    Args:
        teacher: a checkpoint, adapters included, that knows some of the classes.
        data: a COCO, VOC or YOLO data set, a folder or file.
        model: which detector is to learn; by default the teacher's kind.
        size: how large it is; nano, or that of `weights`.
        out: folder of the run; must not hold another run unless resuming.
        resume: continue the run in `out` exactly where its state was saved.
        show_batches: only write `batches.png`, a picture of what the network would see, into `out`.
        options: of `train`.

    Returns:
        The run's folder, as `train` leaves it.
    """
    return train(data, model, size, out, teacher=teacher, resume=resume, show_batches=show_batches, **options)

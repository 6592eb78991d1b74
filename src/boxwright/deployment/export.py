"""The verb `export`: a detector as one file, from pixels to boxes, and the proof that it says the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from boxwright.config import UserError, require
from boxwright.console import make_console
from boxwright.data.read import read
from boxwright.data.records import Record
from boxwright.evaluation.evaluate import choose_split, missing_classes
from boxwright.files import write_whole
from boxwright.models.hub import repository
from boxwright.models.weights import find_weights, load_detector

if TYPE_CHECKING:
    import onnx

    from boxwright.types import Detector

Precision = Literal["fp32"]
EXTRA = 'python -m pip install "boxwright[train]"'
BUNDLED = Path(__file__).parent.parent / "bundled" / "bccd"


def export(
    weights: Path | str,
    to: Literal["onnx"] = "onnx",
    precision: Precision = "fp32",
    data: Path | str | None = None,
    out: Path | str | None = None,
) -> Path:
    """Write a detector as one file that runs without torch: uint8 images in, boxes in their pixels out.

    Resizing, normalisation, network, decoding and selection are all inside, and the class names are in the file's
    metadata. The file is then run beside its source on real images; where it says something else, the export fails and
    no file is left. A report stands beside the file.

    Args:
        weights: a checkpoint or the folder of a training run; an adapter is merged.
        to: the format.
        precision: of weights and arithmetic.
        data: a COCO, VOC or YOLO data set to compare on.
        out: the file; by default beside the weights, named after them.

    Returns:
        The file.
    """
    _check_installed()
    from boxwright.deployment.onnx_file import save
    from boxwright.deployment.parity import File, compare
    from boxwright.deployment.writers import seeds

    console = make_console()
    require(to == "onnx", f"--to is onnx, not {to!r}.")
    detector = load_detector(weights)
    out = Path(out) if out is not None else _beside(weights, precision)
    records, names, said = _images(data, detector.names)
    console.print(f"{weights} to {out}, {precision}")
    model = _converted(detector)

    def write(temporary: Path) -> None:
        save(model, temporary)
        console.print(f"{temporary.stat().st_size / 1e6:.1f} MB; comparing with the source on {said}")
        first = seeds(detector, 1)
        file = File(temporary, seed=0 if first is None else int(first))
        parity = compare(file, detector, precision, records, names)
        if parity.faults:
            raise UserError(f"the exported file differs from its source: {'; '.join(parity.faults)}. No file is left.")
        page = parity.to_markdown(out.name)
        write_whole(out.with_suffix(".report.json"), lambda file: file.write_text(parity.to_json(), encoding="utf-8"))
        write_whole(out.with_suffix(".report.md"), lambda file: file.write_text(page, encoding="utf-8"))
        console.print(page.partition("\n\n")[2])

    write_whole(out, write)
    console.print(f"written: {out}, and {out.stem}.report.md and .json beside it")
    return out


def _check_installed() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"export needs {error.name}, which is not installed: {EXTRA}") from error


def _converted(detector: Detector) -> onnx.ModelProto:
    """Its graph; what the exporter cannot say in ONNX is one clear line."""
    import onnx
    import torch

    from boxwright.deployment.onnx_file import to_onnx

    try:
        return to_onnx(detector)
    except (torch.onnx.OnnxExporterError, onnx.checker.ValidationError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:120]
        kind = type(detector).__name__.lower()
        raise UserError(f"a {kind} can't be written as ONNX with torch {torch.__version__} ({reason}).") from error


def _beside(weights: Path | str, precision: str) -> Path:
    """``best.onnx`` or ``best-int8.onnx``, beside the weights; here if they come from the hub."""
    file = find_weights(Path(weights))
    folder = file.parent if repository(weights) is None else Path()
    return folder / (file.stem + ("" if precision == "fp32" else f"-{precision}") + ".onnx")


def _images(data: Path | str | None, known: tuple[str, ...]) -> tuple[list[Record], tuple[str, ...] | None, str]:
    """What to compare on: the images, their classes if they are to be scored, and what it is in words."""
    dataset = read(BUNDLED if data is None else data)
    split, _ = choose_split(dataset, "val" if "val" in dataset.splits and data is not None else None)
    records = dataset.splits[split]
    scored = data is not None or set(dataset.names) <= set(known)
    if data is not None:
        missing_classes(known, dataset.names)
    names = dataset.names if scored else None
    where = "the bundled images of blood cells, as no --data is given" if data is None else f"{data}, split {split}"
    return records, names, f"{len(records)} images ({where})"

"""The command `export`: write a detector as one file, from pixels to boxes, and check its predictions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from boxwright.checkpoints.detector_file import load_detector
from boxwright.checkpoints.locate import find_weights, results_folder
from boxwright.config import UserError, require
from boxwright.console import make_console
from boxwright.data.read import read
from boxwright.data.records import Record
from boxwright.evaluation.evaluate import choose_split, missing_classes
from boxwright.files import require_writable, write_whole

if TYPE_CHECKING:
    import onnx

    from boxwright.types import Detector

Precision = Literal["fp32", "fp16", "int8"]
CALIBRATION_IMAGES = 64  # at most, for int8
SAME_OUTPUT = 1e-4  # relative difference of two layers' outputs below which they count as equal
BUNDLED = Path(__file__).parent.parent / "bundled" / "bccd"


def export(
    weights: Path | str,
    to: Literal["onnx"] = "onnx",
    precision: Precision = "fp32",
    data: Path | str | None = None,
    out: Path | str | None = None,
) -> Path:
    """Write a detector as one ONNX file that runs without torch: uint8 images in, boxes in image pixels out.

    Resizing, normalisation, network, decoding and selection are all inside, and the class names are in the file's
    metadata. The file is then compared with its source on real images; if its predictions differ, the export fails and
    leaves no file. A report is written beside the file.

    Args:
        weights: a checkpoint or the folder of a training run; an adapter is merged.
        to: the file format.
        precision: precision of weights and arithmetic; fp16 is for GPUs, int8 also for CPUs. Some layers stay in fp32
            (`boxwright.deployment.onnx.quantise`).
        data: a data set for the comparison, and for the calibration of int8.
        out: the file to write; by default beside the weights, with their name.

    Returns:
        The file.
    """
    from boxwright.deployment.onnx.onnx_file import save
    from boxwright.deployment.onnx.parity import compare
    from boxwright.runtime.onnx_detector import Detector as Exported

    console = make_console()
    require(to == "onnx", f"--to is onnx, not {to!r}.")
    known = ", ".join(get_args(Precision))
    require(precision in get_args(Precision), f"--precision is one of {known}, not {precision!r}.")
    require(precision != "int8" or data is not None, "int8 learns its ranges from your images: give --data.")
    detector = load_detector(weights)
    out = Path(out) if out is not None else _beside(weights, precision)
    _check_out(out)
    images = _export_images(data, detector.names)
    unscored = f"what {precision} costs is measured in AP: give --data with objects of {', '.join(detector.names)}."
    require(precision == "fp32" or images.names is not None, unscored)
    console.print(f"{weights} to {out}, {precision}")
    if images.unknown:
        console.print(f"not scored, as the detector does not know them: {', '.join(images.unknown)}")
    reports = []

    def write(temporary: Path) -> None:
        faults = ""
        for model in _convert(detector, precision, images):
            if faults:
                console.print(f"{faults} Once more, with more layers in fp32:")
            save(model, temporary)
            console.print(f"{temporary.stat().st_size / 1e6:.1f} MB; comparing with the source on {images.description}")
            exported = Exported(temporary, "cpu", seed=_seed(detector))
            parity = compare(exported, detector, precision, images.records, images.names)
            if not parity.faults:
                reports.append(parity)
                return
            faults = f"{'; '.join(parity.faults)}. {_largest_drift(model, detector, images)}"
        raise UserError(f"{out} was not written, as it is not proven equal to its source: {faults}")

    write_whole(out, write)
    page = reports[0].to_markdown(out.name)
    write_whole(out.with_suffix(".report.json"), lambda file: file.write_text(reports[0].to_json(), encoding="utf-8"))
    write_whole(out.with_suffix(".report.md"), lambda file: file.write_text(page, encoding="utf-8"))
    console.print(page.partition("\n\n")[2])
    console.print(f"written: {out}, and {out.stem}.report.md and .json beside it")
    return out


def _check_out(out: Path) -> None:
    """Raise `UserError` where the file can't be written, before minutes are spent on it."""
    require(out.suffix == ".onnx" and not out.is_dir(), f"--out is a file that ends in .onnx, not {out}.")
    require_writable(out.parent)


def _seed(detector: Detector) -> int:
    """The seed with which the detector samples tokens for the first image of a batch; 0 where it samples none."""
    from boxwright.models.sequence.sequence_detector import SequenceDetector

    return detector.seeds(1)[0] if isinstance(detector, SequenceDetector) else 0


def _convert(detector: Detector, precision: Precision, images: ExportImages) -> Iterator[onnx.ModelProto]:
    """Graphs of the detector to try in turn: one, or for int8 the fastest, then one with more layers in fp32.

    Raises:
        UserError: for what the exporter can't express in ONNX.
    """
    import onnx
    import torch

    from boxwright.deployment.onnx.onnx_file import describe, to_onnx
    from boxwright.deployment.onnx.parity import decode_images
    from boxwright.deployment.onnx.quantise import FP32_STRIDES, to_fp16, to_int8

    try:
        fp32_model = to_onnx(detector)
    except (torch.onnx.OnnxExporterError, onnx.checker.ValidationError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:120]
        kind = type(detector).__name__.lower()
        raise UserError(f"a {kind} can't be written as ONNX with torch {torch.__version__} ({reason}).") from error
    if precision == "int8":
        models = (
            to_int8(fp32_model, decode_images(images.calibration, detector.image_size), detector.fp32_modules, stride)
            for stride in FP32_STRIDES
        )
    else:
        models = iter([fp32_model if precision == "fp32" else to_fp16(fp32_model, detector.fp32_modules)])
    for model in models:
        describe(model, detector, precision)
        yield model


def _largest_drift(model: onnx.ModelProto, detector: Detector, images: ExportImages) -> str:
    """A sentence that names the layers in which file and source begin to differ."""
    from boxwright.deployment.onnx.layer_drift import drift_by_layer
    from boxwright.deployment.onnx.parity import decode_images

    image_HW3 = next(decode_images(images.records, detector.image_size))
    worst = drift_by_layer(model, detector, image_HW3)[:3]
    if not worst or worst[0][1] < SAME_OUTPUT:
        return "All layers agree up to where rows or tokens are chosen; the differences begin behind it."
    return f"Layers that differ most: {', '.join(f'{name} (by {share:.1%})' for name, share in worst)}."


def _beside(weights: Path | str, precision: str) -> Path:
    """``best.onnx`` or ``best-int8.onnx``, beside the weights; in the working directory if they come from the hub."""
    name = find_weights(Path(weights)).stem + ("" if precision == "fp32" else f"-{precision}")
    return results_folder(weights) / f"{name}.onnx"


@dataclass(frozen=True)
class ExportImages:
    """Images on which an export is compared with its source, and calibrated.

    Attributes:
        records: the images to compare on.
        names: classes of their annotation; None where AP is not computed.
        description: how many they are, and where they come from.
        calibration: images from which int8 takes the ranges of activations.
        unknown: classes of the data that the detector does not know.
    """

    records: Sequence[Record]
    names: tuple[str, ...] | None
    description: str
    calibration: Sequence[Record]
    unknown: list[str]


def _export_images(data: Path | str | None, known: tuple[str, ...]) -> ExportImages:
    """Images of a data set, or the bundled ones, for a detector that knows these classes."""
    dataset = read(BUNDLED if data is None else data)
    split, _ = choose_split(dataset, "val" if "val" in dataset.splits and data is not None else None)
    records = dataset.splits[split]
    train = dataset.splits.get("train", records)
    labels = {dataset.names[label] for record in records for label in record.labels_N[~record.ignore_N].tolist()}
    scored = bool(labels & set(known)) if data is not None else set(dataset.names) <= set(known)
    where = "the bundled images of blood cells, as no --data is given" if data is None else f"{data}, split {split}"
    return ExportImages(
        records=records,
        names=dataset.names if scored else None,
        description=f"{len(records)} images ({where})",
        calibration=train[:: -(-len(train) // CALIBRATION_IMAGES)],
        unknown=missing_classes(known, dataset.names) if data is not None else [],
    )

"""The verb `export`: a detector as one file, from pixels to boxes, and the proof that it says the same."""

from __future__ import annotations

import os
from collections.abc import Iterator
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
from boxwright.files import write_whole

if TYPE_CHECKING:
    import onnx

    from boxwright.types import Detector

Precision = Literal["fp32", "fp16", "int8"]
CALIBRATED = 64  # images whose ranges of numbers are looked at, for int8
ALIKE = 1e-4  # of the length of what a layer says
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
        data: a COCO, VOC or YOLO data set for the comparison, and for the calibration of int8.
        out: the file to write; by default beside the weights, with their name.

    Returns:
        The file.
    """
    from boxwright.deployment.onnx.onnx_file import save
    from boxwright.deployment.onnx.parity import compare
    from boxwright.models.sequence.sequence_detector import SequenceDetector
    from boxwright.runtime.onnx_detector import Detector as Exported

    console = make_console()
    require(to == "onnx", f"--to is onnx, not {to!r}.")
    known = ", ".join(get_args(Precision))
    require(precision in get_args(Precision), f"--precision is one of {known}, not {precision!r}.")
    require(precision != "int8" or data is not None, "int8 learns its ranges from your images: give --data.")
    detector = load_detector(weights)
    out = Path(out) if out is not None else _beside(weights, precision)
    _check(out)
    pictures = _pictures(data, detector.names)
    unscored = f"what {precision} costs is measured in AP: give --data with objects of {', '.join(detector.names)}."
    require(precision == "fp32" or pictures.names is not None, unscored)
    console.print(f"{weights} to {out}, {precision}")
    if pictures.unknown:
        console.print(f"not scored, as the detector does not know them: {', '.join(pictures.unknown)}")
    reports = []

    def write(temporary: Path) -> None:
        wrong = ""
        for model in _converted(detector, precision, pictures):
            if wrong:
                console.print(f"{wrong} Once more, with more layers in fp32:")
            save(model, temporary)
            console.print(f"{temporary.stat().st_size / 1e6:.1f} MB; comparing with the source on {pictures.said}")
            exported = Exported(
                temporary, "cpu", seed=detector.seeds(1)[0] if isinstance(detector, SequenceDetector) else 0
            )
            parity = compare(exported, detector, precision, pictures.records, pictures.names)
            if not parity.faults:
                reports.append(parity)
                return
            wrong = f"{'; '.join(parity.faults)}. {_moved(model, detector, pictures)}"
        raise UserError(f"{out} was not written, as it is not proven equal to its source: {wrong}")

    write_whole(out, write)
    page = reports[0].to_markdown(out.name)
    write_whole(out.with_suffix(".report.json"), lambda file: file.write_text(reports[0].to_json(), encoding="utf-8"))
    write_whole(out.with_suffix(".report.md"), lambda file: file.write_text(page, encoding="utf-8"))
    console.print(page.partition("\n\n")[2])
    console.print(f"written: {out}, and {out.stem}.report.md and .json beside it")
    return out


def _check(out: Path) -> None:
    """Raise `UserError` for a place where the file cannot be, before minutes are spent on it."""
    require(out.suffix == ".onnx" and not out.is_dir(), f"--out is a file that ends in .onnx, not {out}.")
    there = next(folder for folder in out.absolute().parents if folder.exists())
    require(there.is_dir() and os.access(there, os.W_OK), f"nothing can be written in {there}; choose another --out.")


def _converted(detector: Detector, precision: Precision, pictures: Pictures) -> Iterator[onnx.ModelProto]:
    """Its graph; in int8 the fastest first, then with more layers in fp32.

    Raises:
        UserError: for what the exporter cannot say in ONNX.
    """
    import onnx
    import torch

    from boxwright.deployment.onnx.onnx_file import describe, to_onnx
    from boxwright.deployment.onnx.parity import images
    from boxwright.deployment.onnx.quantise import FINE, to_fp16, to_int8

    try:
        plain = to_onnx(detector)
    except (torch.onnx.OnnxExporterError, onnx.checker.ValidationError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:120]
        kind = type(detector).__name__.lower()
        raise UserError(f"a {kind} can't be written as ONNX with torch {torch.__version__} ({reason}).") from error
    if precision == "int8":
        models = (
            to_int8(plain, images(pictures.calibration, detector.image_size), detector.fp32_modules, fine)
            for fine in FINE
        )
    else:
        models = iter([plain if precision == "fp32" else to_fp16(plain, detector.fp32_modules)])
    for model in models:
        describe(model, detector, precision)
        yield model


def _moved(model: onnx.ModelProto, detector: Detector, pictures: Pictures) -> str:
    """Where file and source part, in a sentence."""
    from boxwright.deployment.onnx.layer_drift import moved
    from boxwright.deployment.onnx.parity import images

    worst = moved(model, detector, next(images(pictures.records, detector.image_size)))[:3]
    if not worst or worst[0][1] < ALIKE:
        return "All layers agree up to where something is chosen; they part behind it."
    return f"Layers that moved most: {', '.join(f'{name} (by {share:.1%})' for name, share in worst)}."


def _beside(weights: Path | str, precision: str) -> Path:
    """``best.onnx`` or ``best-int8.onnx``, beside the weights; here if they come from the hub."""
    name = find_weights(Path(weights)).stem + ("" if precision == "fp32" else f"-{precision}")
    return results_folder(weights) / f"{name}.onnx"


@dataclass(frozen=True)
class Pictures:
    """What an export is tried on.

    Attributes:
        records: the images that both look at.
        names: their classes; None if they are not to be scored.
        said: what they are, in words.
        calibration: images whose ranges of numbers are looked at.
        unknown: classes of the data that the detector does not know.
    """

    records: list[Record]
    names: tuple[str, ...] | None
    said: str
    calibration: list[Record]
    unknown: list[str]


def _pictures(data: Path | str | None, known: tuple[str, ...]) -> Pictures:
    dataset = read(BUNDLED if data is None else data)
    split, _ = choose_split(dataset, "val" if "val" in dataset.splits and data is not None else None)
    records = dataset.splits[split]
    others = dataset.splits.get("train", records)
    labels = {dataset.names[label] for record in records for label in record.labels_N[~record.ignore_N].tolist()}
    scored = bool(labels & set(known)) if data is not None else set(dataset.names) <= set(known)
    where = "the bundled images of blood cells, as no --data is given" if data is None else f"{data}, split {split}"
    return Pictures(
        records=records,
        names=dataset.names if scored else None,
        said=f"{len(records)} images ({where})",
        calibration=others[:: -(-len(others) // CALIBRATED)],
        unknown=missing_classes(known, dataset.names) if data is not None else [],
    )

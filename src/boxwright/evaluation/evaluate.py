"""The verb `evaluate`: a detector's scores on annotated images, with pictures."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from boxwright.checkpoints.detector_file import load_detector
from boxwright.checkpoints.locate import BUNDLED, results_folder
from boxwright.classes import enumerate_classes
from boxwright.config import UserError, nearest, require
from boxwright.console import make_console
from boxwright.data.cache import open_batches
from boxwright.data.read import name_splits, read, train_and_val
from boxwright.data.records import Dataset, Record
from boxwright.device import choose_device, usual_torch
from boxwright.evaluation.coco import RECALLS_R, Report, renamed, score
from boxwright.evaluation.confusion import confusion, to_csv
from boxwright.evaluation.report import write_page
from boxwright.evaluation.run import detect_batches
from boxwright.evaluation.store import require_own_file, store_thresholds
from boxwright.evaluation.thresholds import Choice, ThresholdReport, too_few
from boxwright.files import require_writable, write_whole
from boxwright.runtime.predictor_base import check_batch_size
from boxwright.thresholds import Thresholds
from boxwright.types import Detections
from boxwright.visualization import charts, images

IOU = 0.5  # of the confusion matrix
SCORES = 1000  # at which F1 is drawn
PICTURES = 8  # images drawn, spread over the split


@usual_torch()
def evaluate(
    weights: Path | str,
    data: Path | str,
    split: str | None = None,
    out: Path | str | None = None,
    batch_size: int = 16,
    device: str = "auto",
    store: bool | None = None,
) -> Report:
    """Evaluate a detector on annotated images.

    Prints COCO's twelve numbers, a table per class, the expected calibration error of the scores, and the score of best
    F1, which `predict`, `serve` and exported files use where it is stored. Classes are matched by name: one that the
    detector does not know scores 0; detections of classes that the data does not have are left out. Writes index.html,
    metrics.json, predictions.json (COCO results, with the data's own ids), pr_curves.png, f1_curves.png, confusion.png,
    confusion.csv and pictures/.

    Args:
        weights: a checkpoint or the folder of a training run.
        data: a data set, in any format that boxwright reads (docs/data-formats.md).
        split: the images to evaluate on; by default test, else val, else the only split. val of a data set without one
            is what the run of these weights held out.
        out: folder of the page, the predictions and the charts; by default evaluate-DATA-SPLIT beside the weights, or
            here if they come from the hub.
        batch_size: images per batch.
        device: auto, cpu, cuda or mps.
        store: write the score of best F1, for each class and overall, into the weights file: true replaces the one that
            is there, false writes nothing. By default it is written if the file has none yet, unless the images are
            those of a split called test or train.

    Returns:
        The report: stats, per_class, calibration, thresholds, summary(), table().
    """
    console = make_console()
    check_batch_size(batch_size)
    require_writable(Path(out or results_folder(weights)))
    require_own_file(weights, store)
    device, why = choose_device(device)
    detector = load_detector(weights, device)
    dataset = read(data)
    if split == "val" and "val" not in dataset.splits:
        dataset = with_held_out(dataset, detector.card, weights)
    split, reason = choose_split(dataset, split)
    records = dataset.splits[split]
    missing = missing_classes(detector.names, dataset.names)
    stored = Thresholds() if store else Thresholds.from_card(detector.card)
    out = Path(out or results_folder(weights) / f"evaluate-{_name(data)}-{split}")

    console.print(f"{weights} on {data}, split {split} ({reason}): {len(records)} images; {device} ({why})")
    if missing:
        console.print(f"the detector does not know, and scores 0 on: {enumerate_classes(missing)}")
    cache = open_batches(records, detector.image_size)
    batches = detect_batches(detector, cache, batch_size, device)
    n_batches = -(-len(records) // batch_size)
    shown = track(batches, "detecting", n_batches, console=console, transient=True, disable=not console.is_terminal)
    detections = [renamed(found, dataset.names) for batch in shown for found in batch]
    report = score(records, detections, dataset.names)
    console.print(report.summary())
    console.print(report.table())
    console.print(report.calibration.summary())
    best = report.thresholds.choose(f"{len(records)} images of {_name(data)}, split {split}", detector.names)
    kept = store_thresholds(weights, best, stored, split, store)
    choice = Choice(best, best if best is not None and kept is None else stored)
    console.print(report.thresholds.table(choice))
    console.print(report.thresholds.summary())
    notes = [*too_few(detector.names, report.boxes_of(detector.names)), _told(choice, kept, detector.names)]
    console.print("\n".join(notes))
    facts = {"weights": str(weights), "data": str(data), "split": split, "unknown_classes": missing}
    write_results(out, report, records, detections, dataset, choice, facts)
    console.print(f"written: {out / 'index.html'}, predictions.json, metrics.json and charts beside it")
    return report


def _told(choice: Choice, kept: str | None, names: Sequence[str]) -> str:
    """One line: the thresholds in use, and whether they have just been written."""
    written = "written into the weights" if kept is None else f"thresholds are not written into the weights: {kept}"
    return f"in use: {choice.in_use.describe(names)}; {written}"


def choose_split(dataset: Dataset, split: str | None) -> tuple[str, str]:
    """The split to score on and the reason: test if there is one, else val, else the only one.

    Raises:
        UserError: if there is no such split, or only others to choose from, or it is empty.
    """
    there = ", ".join(dataset.splits)
    if split is None:
        usual = [name for name in ("test", "val", "all") if name in dataset.splits]
        only = list(dataset.splits) if len(dataset.splits) == 1 else []
        require(usual or only, f"{dataset.root} has no split test or val; choose one of {there} with --split.")
        split, reason = (usual or only)[0], f"of {there}"
    else:
        hint = nearest(split, dataset.splits)
        require(split in dataset.splits, f"{dataset.root} has no split {split!r}{hint}; it has {there}.")
        reason = "as asked"
    require(dataset.splits[split], f"the split {split!r} of {dataset.root} has no images.")
    return split, reason


def with_held_out(dataset: Dataset, card: Mapping[str, Any], weights: Path | str) -> Dataset:
    """The data set with the images that a run held out as its split val, and the others as its split train.

    Args:
        dataset: without a split val.
        card: of the weights; `train` stores its settings there. Without them the data set stays as it is.
        weights: where the card comes from, for the message.

    Raises:
        UserError: the run held out none of these images.
    """
    settings = card.get("settings", {})
    if "val" not in settings or "seed" not in settings or settings.get("val_split"):
        return dataset
    named = name_splits(dataset, settings.get("train_split"), None)
    train, val = train_and_val(named, settings["val"], settings["seed"])
    trained_on = str(card.get("trained on", "other images"))
    others = f"{weights} was trained on {trained_on}, not on {len(train)} of these"
    problem = f"{dataset.root} has no split val, and {others}"
    fix = f"choose one of {', '.join(dataset.splits)} with --split"
    require(trained_on.startswith(f"{len(train)} images of "), f"{problem}: what it held out is unknown; {fix}.")
    return replace(dataset, splits=dataset.splits | {"train": train, "val": val})


def missing_classes(known: Sequence[str], names: Sequence[str]) -> list[str]:
    """The classes of the data that the detector does not know.

    Raises:
        UserError: if it knows none of them.
    """
    missing = [name for name in names if name not in known]
    if len(missing) == len(names):
        raise UserError(
            f"the detector and the data have no class in common: it knows {enumerate_classes(known)}; the data "
            f"has {enumerate_classes(names)}. Classes are matched by name; rename them in the data."
        )
    return missing


def write_results(
    out: Path,
    report: Report,
    records: Sequence[Record],
    detections: Sequence[Detections],
    dataset: Dataset,
    choice: Choice,
    facts: dict[str, Any],
) -> None:
    """Write all files of `evaluate`.

    Args:
        out: the folder.
        report: the scores.
        records: the images.
        detections: of each image, with class positions in the data.
        dataset: the data set of these records.
        choice: the thresholds; those in use decide what the confusion matrix counts.
        facts: further entries of metrics.json, shown on the page: weights, data, split, unknown_classes.
    """
    names = dataset.names
    limits_K = choice.in_use.of(names)
    matrix = confusion(records, detections, names, limits_K, IOU)
    results = [
        row
        for record, found in zip(records, detections, strict=True)
        for row in found.to_coco(record.image_id, dataset.ids_of(facts["split"]))
    ]
    over = f"{limits_K[0]:.3g}" if len(set(limits_K)) == 1 else "the threshold in use of its class"
    note = f"score over {over}, IoU {IOU:.2f} or more"
    axes = {"rows": "true", "columns": "predicted", "last": "background"}
    confusion_facts = {"thresholds": dict(zip(names, limits_K, strict=True)), "iou": IOU} | axes
    metrics = facts | report.to_dict() | {"thresholds": report.thresholds.to_dict(choice)}
    metrics |= {"confusion": confusion_facts | {"matrix": matrix.tolist()}}
    _write_text(out / "predictions.json", json.dumps(results))
    _write_text(out / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    _write_text(out / "confusion.csv", to_csv(matrix, names))
    curves, f1_curves, table = (out / f"{name}.png" for name in ("pr_curves", "f1_curves", "confusion"))
    write_whole(curves, lambda file: charts.precision_recall(RECALLS_R, report.precision_TRK, names, file))
    write_whole(f1_curves, lambda file: draw_thresholds(report.thresholds, choice, file))
    write_whole(table, lambda file: charts.confusion(matrix, names, file, note))
    pictures = draw_some(records, detections, names, out / "pictures")
    drawn = [
        ("Precision over recall; the area under a line is the AP of its class.", curves),
        (f"Who is taken for whom: {note}. Last column: missed; last row: false alarms.", table),
    ]
    weights, data, split = _shown_weights(facts["weights"]), _name(facts["data"]), facts["split"]
    notes = [f"The detector {weights} on {data}, split {split}: {report.images} images."]
    if facts["unknown_classes"]:
        notes.append(f"The detector does not know, and scores 0 on: {enumerate_classes(facts['unknown_classes'])}.")
    title, asked = f"{weights} evaluated on {data}, {split}", (facts["weights"], facts["data"], "--split", split)
    command = shlex.join(("boxwright", "evaluate", *asked))
    write_page(out / "index.html", title, report, choice, pictures, notes, drawn, f1_curves, command)


def draw_thresholds(report: ThresholdReport, choice: Choice, file: Path) -> None:
    """Draw F1 over score for each class that occurs, and precision and recall of all classes together."""
    scores_S = np.linspace(0, 1, SCORES, endpoint=False)
    f1_by_class = {name: curve.at(scores_S)[2] for name, curve in report.curves.items() if curve.objects}
    best = {} if choice.best is None else dict(zip(report.names, choice.best.of(report.names), strict=True))
    overall = None if choice.best is None else choice.best.overall
    charts.f1_over_score(scores_S, f1_by_class, best, report.names, report.curve.at(scores_S), overall, file)


def draw_some(
    records: Sequence[Record], detections: Sequence[Detections], names: Sequence[str], folder: Path
) -> list[tuple[str, Path]]:
    """Draw a few images spread over the split, at three score thresholds and as annotated: (caption, file) of each."""
    chosen = np.unique(np.linspace(0, len(records) - 1, min(PICTURES, len(records))).round().astype(int))
    pictures = []
    for position in chosen.tolist():
        record = records[position]
        file = folder / f"{position + 1:05d}-{record.path.stem}.jpg"
        sheet = images.side_by_side(record, detections[position], names)
        write_whole(file, lambda temporary, sheet=sheet: sheet.save(temporary, format="jpeg", quality=85))
        pictures.append((record.path.name, file))
    return pictures


def _write_text(path: Path, text: str) -> None:
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _shown_weights(weights: str) -> str:
    """A short name for a detector: the folder of its run and its file, or the name of a bundled one."""
    bundled = (name for name, file in BUNDLED.items() if Path(weights) == file)
    return next(bundled, "/".join(Path(weights).parts[-2:]))


def _name(data: Path | str) -> str:
    """A short name for a data set: its folder's."""
    path = Path(data).resolve()
    return path.parent.name if path.is_file() else path.name

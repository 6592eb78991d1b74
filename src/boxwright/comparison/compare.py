"""The command `compare`: train detectors on one data set under equal conditions, and say which one to take."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from boxwright.checkpoints.detector_file import load_detector
from boxwright.comparison.advice import advise
from boxwright.comparison.cost import detection_cost, measure
from boxwright.comparison.learning_curve import curve
from boxwright.comparison.plan import Plan, write_json
from boxwright.comparison.report import write_report
from boxwright.comparison.row import Row
from boxwright.comparison.settings import SharedSettings, chosen, digest, usual_image_size
from boxwright.config import UNMIXED, Augment, UserError, fill_in, require
from boxwright.console import make_console
from boxwright.data.cache import Cache, build
from boxwright.data.records import Record
from boxwright.device import choose_device, device_name
from boxwright.evaluation.coco import STAT_NAMES, score, shown
from boxwright.evaluation.run import detect
from boxwright.models.registry import Size
from boxwright.training import recipes
from boxwright.training.diagnosis import NOTHING, diagnose
from boxwright.training.resolve import resolve
from boxwright.training.run import run
from boxwright.training.state import FILE as STATE

PARTS = 10  # the validation images are split into, to estimate the noise of AP
MINUTES = 10.0  # for each detector, by default


@dataclass
class Comparison:
    """The result of `compare`.

    Attributes:
        folder: of the page and the runs.
        rows: the detectors, best first.
        advice: sentences that say which to take, and why.
        failed: the reason, for each detector whose training failed.
    """

    folder: Path
    rows: list[Row]
    advice: list[str]
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """1 if a detector could not be trained."""
        return int(bool(self.failed))


def compare(
    data: Path | str,
    models: list[str] | str | None = None,
    *,
    minutes: float | None = None,
    epochs: int | None = None,
    out: Path | str = Path("runs/compare"),
    size: Size = "nano",
    image_size: int | None = None,
    val_data: Path | str | None = None,
    val: float = 0.2,
    train_split: str | None = None,
    val_split: str | None = None,
    augment: Augment = Augment(),  # noqa: B008
    seed: int = 0,
    device: str = "auto",
    resume: bool = False,
) -> Comparison:
    """Train detectors on your images under equal conditions, and say which one to take.

    Images, split, canvas, augmentation and budget are equal; optimizer and batch size come from each recipe. Writes
    index.html (accuracy by size, curves over time, latency, memory, parameters, the same images side by side, a
    recommendation), comparison.json with the numbers, and each detector's run in a folder of its name.

    Args:
        data: a data set, in any format that boxwright reads (docs/data-formats.md).
        models: detectors to compare, by name with commas between; by default all.
        minutes: time for training and validation of each detector, 10 unless `epochs` is given; a short trial measures
            how many epochs fit.
        epochs: number of passes over the training images for each detector, instead of `minutes`.
        out: folder of the comparison.
        size: the size of each detector; decides backbone, width and depth.
        image_size: side of the square canvas, in pixels; by default that of most detectors of this size.
        val_data: a second data set to validate on; classes are matched by name.
        val: share of the training images held out for validation if the data has no val split.
        train_split: split to train on instead of train; join several with a plus, as in train+val.
        val_split: split to validate on instead of val.
        augment: augmentation of the images; what you leave open is as in the recipe of dense.
        seed: seed of all random draws.
        device: auto, cpu, cuda or mps.
        resume: continue the comparison in `out`; finished detectors are kept, and you may add others.

    Returns:
        The rows, best first, and the advice.
    """
    wanted = chosen(models, size)
    require(minutes is None or epochs is None, "give --minutes or --epochs, not both.")
    require(minutes is None or (minutes > 0 and math.isfinite(minutes)), f"--minutes must be over 0, not {minutes}.")
    require(epochs is None or epochs >= 1, f"--epochs must be at least 1, not {epochs}.")
    require(image_size is None or image_size >= 64, f"--image-size must be at least 64, not {image_size}.")
    decided = asdict(fill_in(fill_in(augment, recipes.recipe("dense").augment), UNMIXED))
    settings = SharedSettings(
        data=str(data),
        val_data=None if val_data is None else str(val_data),
        val=val,
        train_split=train_split,
        val_split=val_split,
        size=size,
        image_size=image_size or usual_image_size(size),
        augment=json.loads(json.dumps(decided)),  # tuples become lists, as they are when read again
        minutes=MINUTES if minutes is None and epochs is None else minutes,
        epochs=epochs,
        seed=seed,
        device=choose_device(device)[0],
    )
    return _compare(settings, wanted, Path(out), resume, make_console())


def _compare(settings: SharedSettings, models: Sequence[str], out: Path, resume: bool, console: Console) -> Comparison:
    """Train, score and measure each detector, and write the results."""
    names, records, val_records = settings.records()
    plan = Plan.begin(out, settings, digest(names, records, val_records), resume)
    images = f"{len(records)} images to train on, {len(val_records)} to validate on"
    console.print(
        f"comparing {', '.join(models)} on {settings.data}: {images}, {settings.image_size} px, {settings.device}"
    )
    build(records, settings.image_size)
    cache = build(val_records, settings.image_size)
    plan.decide_epochs(models, len(records), console)
    rows: list[Row] = []
    failed: dict[str, str] = {}
    for model in models:
        if problem := _train(plan, model, console):
            failed[model] = problem
        else:
            rows.append(_score(plan, model, cache, (records, val_records), names))
    failures = [f"{model}: {problem}" for model, problem in failed.items()]
    require(rows, f"no detector could be trained: {'; '.join(failures)}")
    console.print("measuring speed and memory")
    for row in rows:
        row.cost.update(plan.costs[row.model] | measure(detection_cost, settings, str(out / row.model / "last")))
    comparison = Comparison(out, sorted(rows, key=lambda row: -row.ap), advise(rows, len(val_records)), failed)
    _write(comparison, settings, names, cache, val_records)
    console.print(_table(comparison.rows))
    console.print("\n".join([*comparison.advice, *(f"{model} failed: {problem}" for model, problem in failed.items())]))
    console.print(f"written: {out / 'index.html'}, comparison.json and a run for each detector")
    return comparison


def _train(plan: Plan, model: str, console: Console) -> str:
    """Train a detector, unless that was done before. Returns why it failed, or an empty string."""
    folder, epochs = plan.folder / model, int(plan.costs[model]["epochs"])
    if (folder / "result.json").is_file():
        console.print(f"{model}: done before")
        return ""
    resume = (folder / STATE).is_file()
    for name in () if resume else ("best.safetensors", "last.safetensors"):  # killed before its first state was saved
        (folder / name).unlink(missing_ok=True)
    console.print(f"\n{model}: {epochs} epochs, about {plan.costs[model]['planned_minutes']:.1f} minutes")
    try:
        run(resolve(plan.settings.run_config(model, folder, epochs)), resume)
    except (UserError, torch.OutOfMemoryError) as error:
        problem = " ".join(str(error).split())
        console.print(f"{model} failed: {problem}")
        return problem
    return ""


def _score(
    plan: Plan, model: str, cache: Cache, parts: tuple[Sequence[Record], Sequence[Record]], names: Sequence[str]
) -> Row:
    """The scores of the last weights; the best ones were chosen by the images that are scored.

    Args:
        plan: with the epochs that the detector was trained for.
        model: its name; the run is in the folder of this name.
        cache: the validation images.
        parts: records of the training images, and of the validation images.
        names: the classes.
    """
    file, (train_records, records) = plan.folder / model / "result.json", parts
    if file.is_file():
        return Row(**_read_json(file))
    detector = load_detector(plan.folder / model / "last", plan.settings.device)
    found = detect(detector, cache, int(recipes.recipe(model).batch_size), plan.settings.device)
    report = score(records, found, names)
    n = min(PARTS, len(records))
    aps = [score(records[part::n], found[part::n], names).ap for part in range(n)]
    per_class = {name: float(numbers["ap"]) for name, numbers in report.per_class.items()}
    stats = dict(zip(STAT_NAMES, report.stats, strict=True)) | {"ECE": report.ece}
    epochs = int(plan.costs[model]["epochs"])
    row = Row(model, stats, aps, curve(plan.folder / model), epochs, {}, per_class)
    if report.ap < NOTHING:
        config = resolve(plan.settings.run_config(model, plan.folder / model, epochs))
        row.hints.extend(diagnose(config, detector, train_records, records, compared=True))
    write_json(file, asdict(row))
    return row


def _write(
    done: Comparison, settings: SharedSettings, names: Sequence[str], cache: Cache, records: Sequence[Record]
) -> None:
    """Write comparison.json and the page."""
    device = device_name(settings.device)
    facts = {"terms": asdict(settings), "device": device, "torch": torch.__version__, "images": len(records)}
    rows = [asdict(row) for row in done.rows]
    write_json(done.folder / "comparison.json", facts | {"rows": rows, "advice": done.advice, "failed": done.failed})
    write_report(done.folder, settings, done.rows, done.advice, done.failed, device, cache, records, names)


def _table(rows: Sequence[Row]) -> Table:
    table = Table("detector", box=None, header_style="bold", pad_edge=False, collapse_padding=True)  # 80 characters
    table.columns[0].no_wrap = True
    for column in ("AP", "AP50", "ECE", "APs", "APm", "APl", "ms", "MiB", "M", "epochs", "minutes"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        scores = [shown(row.stats.get(name, -1)) for name in ("AP", "AP50", "ECE", "APs", "APm", "APl")]
        cost = [f"{row.latency:.1f}", f"{row.cost['detection_mib']:.0f}", f"{row.cost['parameters'] / 1e6:.1f}"]
        table.add_row(row.model, *scores, *cost, str(row.epochs), f"{row.curve[-1][0] / 60:.1f}")
    return table


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is damaged; remove it, and --resume scores again.") from error

"""The verb `compare`: trains detectors on one data set on equal terms, and says which of them to take."""

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
from boxwright.comparison.advice import Row, advise
from boxwright.comparison.cost import detection_cost, measure, training_cost
from boxwright.comparison.learning_curve import curve
from boxwright.comparison.report import write_report
from boxwright.comparison.settings import Terms, chosen, digest, usual_image_size
from boxwright.config import Augment, UserError, fill_in, require
from boxwright.console import make_console
from boxwright.data.cache import Cache, build
from boxwright.data.records import Record
from boxwright.device import choose_device
from boxwright.evaluation.coco import STAT_NAMES, score, shown
from boxwright.evaluation.run import detect
from boxwright.files import write_whole
from boxwright.models.registry import Size
from boxwright.training import recipes
from boxwright.training.resolve import resolve
from boxwright.training.run import run
from boxwright.training.state import FILE as STATE

PARTS = 10  # of the validation images, to tell noise from difference
MINUTES = 10.0  # for each detector, where no budget is given


@dataclass
class Comparison:
    """What a call of `compare` found.

    Attributes:
        folder: of the page and the runs.
        rows: the detectors, best first.
        advice: which to take, in sentences.
        failed: why, of each detector whose training failed.
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
        data: a COCO, VOC or YOLO data set, a folder or file.
        models: detectors to compare, by name with commas between; by default all.
        minutes: time for training and validation of each detector, 10 unless `epochs` is given; a short trial measures
            how many epochs fit.
        epochs: number of passes over the training images for each detector, instead of `minutes`.
        out: folder of the comparison.
        size: the size of each detector; decides backbone, width and depth.
        image_size: side of the square canvas, in pixels; by default that of most detectors of this size.
        val_data: a second data set to validate on, with the same class names.
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
    wanted, kind = chosen(models, size), choose_device(device)[0]
    require(minutes is None or epochs is None, "give --minutes or --epochs, not both.")
    require(minutes is None or (minutes > 0 and math.isfinite(minutes)), f"--minutes must be over 0, not {minutes}.")
    require(epochs is None or epochs >= 1, f"--epochs must be at least 1, not {epochs}.")
    require(image_size is None or image_size >= 64, f"--image_size must be at least 64, not {image_size}.")
    varied = asdict(fill_in(augment, recipes.recipe("dense").augment))
    terms = Terms(
        str(data), None if val_data is None else str(val_data), val, train_split, val_split, size,
        image_size or usual_image_size(size), json.loads(json.dumps(varied)),
        MINUTES if minutes is None and epochs is None else minutes, epochs, seed, kind,
    )  # fmt: skip
    console, out = make_console(), Path(out)
    names, records, val_records = terms.records()
    plan = _Plan.begin(out, terms, digest(names, records, val_records), resume)
    console.print(f"comparing {', '.join(wanted)} on {data}: {len(records)} images to train on, "
                  f"{len(val_records)} to validate on, {terms.image_size} px, {kind}")  # fmt: skip
    build(records, terms.image_size)
    cache = build(val_records, terms.image_size)
    plan.measure_training(wanted, console)
    rows: list[Row] = []
    failed: dict[str, str] = {}
    for model in wanted:
        if said := _trained(plan, model, console):
            failed[model] = said
        else:
            rows.append(_scored(plan, model, cache, val_records, names))
    require(rows, f"no detector could be trained: {'; '.join(f'{m}: {said}' for m, said in failed.items())}")
    console.print("measuring speed and memory")
    for row in rows:
        row.cost.update(plan.costs[row.model] | measure(detection_cost, terms, str(out / row.model / "last")))
    done = Comparison(out, sorted(rows, key=lambda row: -row.ap), advise(rows, len(val_records)), failed)
    _write(done, terms, names, cache, val_records)
    console.print(_table(done.rows))
    console.print("\n".join([*done.advice, *(f"{m} failed: {said}" for m, said in failed.items())]))
    console.print(f"written: {out / 'index.html'}, comparison.json and a run for each detector")
    return done


@dataclass
class _Plan:
    """What was decided before anything was trained; written down, so that it can be gone on with.

    Attributes:
        folder: of the comparison.
        terms: of all detectors.
        data: digest of images and objects.
        costs: of training, by detector, with the number of `epochs`.
    """

    folder: Path
    terms: Terms
    data: str
    costs: dict[str, dict[str, float]] = field(default_factory=dict)

    @staticmethod
    def begin(folder: Path, terms: Terms, data: str, resume: bool) -> _Plan:
        """A new one, or the one in the folder, which must have the same terms.

        Raises:
            UserError: if there is none to go on with, or one that may not be overwritten, or on other terms.
        """
        file = folder / "plan.json"
        if not resume:
            there = f"{folder} holds a comparison already"
            require(not file.exists(), f"{there}; add --resume to go on with it, or give another --out.")
            return _Plan(folder, terms, data)
        require(file.is_file(), f"nothing to resume: {file} does not exist; compare without --resume first.")
        try:
            stored = json.loads(file.read_text())
            before, digested, costs = stored["terms"], stored["data"], stored["costs"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file} is damaged; begin again with another --out.") from error
        other = [
            f"--{name} {before.get(name)} and not {value}"
            for name, value in asdict(terms).items()
            if before.get(name) != value
        ]
        require(not other, f"{folder} was begun with {', '.join(other)}; resume with the same, or give another --out.")
        require(digested == data, f"{terms.data} has changed since {folder} was begun; compare anew in another --out.")
        return _Plan(folder, terms, data, costs)

    def measure_training(self, models: Sequence[str], console: Console) -> None:
        """Rehearse what has not been, and decide on the epochs of each detector.

        Raises:
            UserError: if one can't be trained, or the budget is too small for one epoch.
        """
        needed: dict[str, float] = {}
        for model in models:
            if model in self.costs:
                continue
            console.print(f"rehearsing {model}")
            try:
                cost = measure(training_cost, self.terms, model)
            except UserError as error:
                others = ",".join(other for other in models if other != model)
                hint = f" Leave it out with --models {others}." if others else ""
                raise UserError(f"{model} can't be compared: {error}{hint}") from error
            epoch = (cost["steps"] * cost["step_seconds"] + cost["end_seconds"]) / 60
            epochs = self.terms.epochs or int((self.terms.minutes or 0) / epoch)
            needed |= {} if epochs else {model: epoch}
            self.costs[model] = cost | {"epochs": epochs, "planned_minutes": epochs * epoch}
            console.print(f"  {epoch:.2g} minutes an epoch: {epochs} epochs")
        if needed:
            most = math.ceil(max(needed.values()) * 1.05 * 10) / 10
            said = ", ".join(f"{model} {epoch:.1f}" for model, epoch in needed.items())
            raise UserError(
                f"--minutes {self.terms.minutes:g} is too little for one epoch, in minutes: {said}; "
                f"give --minutes {most:g}, or more, or choose faster ones with --models."
            )
        stored = {"terms": asdict(self.terms), "data": self.data, "costs": self.costs}
        _write_json(self.folder / "plan.json", stored)


def _trained(plan: _Plan, model: str, console: Console) -> str:
    """Train it to its end unless that is done; what went wrong, if something did."""
    folder, epochs = plan.folder / model, int(plan.costs[model]["epochs"])
    if (folder / "result.json").is_file():
        console.print(f"{model}: done before")
        return ""
    resume = (folder / STATE).is_file()
    for name in () if resume else ("best.safetensors", "last.safetensors"):  # killed in between: nothing to go on from
        (folder / name).unlink(missing_ok=True)
    console.print(f"\n{model}: {epochs} epochs, about {plan.costs[model]['planned_minutes']:.1f} minutes")
    try:
        run(resolve(plan.terms.run_config(model, folder, epochs)), resume)
    except (UserError, torch.OutOfMemoryError) as error:
        said = " ".join(str(error).split())
        console.print(f"{model} failed: {said}")
        return said
    return ""


def _scored(plan: _Plan, model: str, cache: Cache, records: Sequence[Record], names: Sequence[str]) -> Row:
    """The scores of the last weights: the best ones would have been chosen on the images they are scored on."""
    file = plan.folder / model / "result.json"
    if file.is_file():
        return Row(**_read_json(file))
    detector = load_detector(plan.folder / model / "last", plan.terms.device)
    found = detect(detector, cache, int(recipes.recipe(model).batch_size), plan.terms.device)
    report = score(records, found, names)
    n = min(PARTS, len(records))
    parts = [score(records[part::n], found[part::n], names).ap for part in range(n)]
    per_class = {name: float(numbers["ap"]) for name, numbers in report.per_class.items()}
    stats = dict(zip(STAT_NAMES, report.stats, strict=True))
    epochs = int(plan.costs[model]["epochs"])
    row = Row(model, stats, parts, curve(plan.folder / model), epochs, {}, per_class)
    _write_json(file, asdict(row))
    return row


def _write(done: Comparison, terms: Terms, names: Sequence[str], cache: Cache, records: Sequence[Record]) -> None:
    """comparison.json and the page."""
    device = _device(terms.device)
    facts = {"terms": asdict(terms), "device": device, "torch": torch.__version__, "images": len(records)}
    rows = [asdict(row) for row in done.rows]
    _write_json(done.folder / "comparison.json", facts | {"rows": rows, "advice": done.advice, "failed": done.failed})
    write_report(done.folder, terms, done.rows, done.advice, done.failed, device, cache, records, names)


def _device(kind: str) -> str:
    if kind == "cuda":
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"{threads} CPU {'core' if threads == 1 else 'cores'}" if kind == "cpu" else kind


def _table(rows: Sequence[Row]) -> Table:
    table = Table("detector", box=None, header_style="bold", pad_edge=False)
    table.columns[0].no_wrap = True
    for column in ("AP", "AP50", "small", "medium", "large", "ms", "MiB", "M", "epochs", "minutes"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        scores = [shown(row.stats[name]) for name in ("AP", "AP50", "APs", "APm", "APl")]
        cost = [f"{row.latency:.1f}", f"{row.cost['detection_mib']:.0f}", f"{row.cost['parameters'] / 1e6:.1f}"]
        table.add_row(row.model, *scores, *cost, str(row.epochs), f"{row.curve[-1][0] / 60:.1f}")
    return table


def _write_json(file: Path, content: dict[str, Any]) -> None:
    write_whole(file, lambda temporary: temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8"))


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is damaged; remove it, and --resume scores again.") from error

"""The command `train`: decide the settings, make the detector, run the loop."""

import json
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from boxwright.checkpoints.detector_file import load_detector
from boxwright.checkpoints.header import read_header
from boxwright.checkpoints.lora import is_adapted
from boxwright.classes import enumerate_classes
from boxwright.config import Adapt, Augment, Optim, UserError, from_mapping, require
from boxwright.console import make_console
from boxwright.data.cache import open_batches
from boxwright.data.loader import BatchSource, train_batches
from boxwright.data.records import Record
from boxwright.data.shards.records import count_labels
from boxwright.device import choose_device, usual_torch
from boxwright.evaluation.thresholds import too_few
from boxwright.files import as_location, name_of, remove_temporary, require_writable, write_whole
from boxwright.models import registry
from boxwright.models.registry import DetectorName, Size
from boxwright.thresholds import Thresholds
from boxwright.training.begin import make_detector, read_data
from boxwright.training.config import FILE as CONFIG
from boxwright.training.config import RecipeName, RunConfig, as_begun, fill_in_settings, recipe_settings
from boxwright.training.diagnosis import NOTHING, diagnose, report
from boxwright.training.fabric import Fabric, Precision, make_fabric
from boxwright.training.folder_lock import locked
from boxwright.training.identity import RunIdentity, checksums_of_data
from boxwright.training.loop import BEST, LAST, Loop
from boxwright.training.resolve import decide_epochs, resolve
from boxwright.training.state import FILE as STATE
from boxwright.training.state import read_progress
from boxwright.training.teacher import Teacher
from boxwright.types import Detector
from boxwright.visualization import charts
from boxwright.visualization.images import show_batch

WRITTEN = (
    STATE, BEST, LAST, CONFIG, "metrics.csv", "curves.png", "batches.png", "not-finite-step-*.safetensors",
    "validation/*.jpg", "explain/*.jpg",
)  # fmt: skip


def train(
    data: Path | str,
    model: DetectorName | None = None,
    size: Size | None = None,
    out: Path | str = Path("runs/train"),
    *,
    val_data: Path | str | None = None,
    val: float = 0.2,
    train_split: str | None = None,
    val_split: str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    image_size: int | None = None,
    backbone: str | None = None,
    weights: Path | str | None = None,
    pretrained: bool = True,
    adapt: Adapt = "full",
    rank: int = 8,
    teacher: Path | str | None = None,
    augment: Augment = Augment(),  # noqa: B008
    optim: Optim = Optim(),  # noqa: B008
    seed: int = 0,
    device: str = "auto",
    precision: Precision = "auto",
    devices: int = 1,
    nodes: int = 1,
    cache: Literal["auto", "pixels", "jpeg", "grow"] = "auto",
    recipe: RecipeName | None = None,
    resume: bool = False,
    show_batches: bool = False,
) -> Path:
    """Train a detector on annotated images.

    The detector's recipe decides what you leave open (shown as null). `config.yaml` in the run's folder holds all
    settings and repeats the run: ``boxwright train --config RUN/config.yaml --out AGAIN``.

    Args:
        data: a data set, in any format that boxwright reads (docs/data-formats.md).
        model: the detector; by default dense, or that of `weights` or `teacher`.
        size: decides backbone, width, depth and image size; by default nano, or that of `weights`.
        out: folder of the run; it must not contain another run, unless with `resume`.
        val_data: a second data set to validate on; classes are matched by name.
        val: share of the training images held out for validation if the data has no val split.
        train_split: split to train on instead of train; join several with a plus, as in train+val.
        val_split: split to validate on instead of val.
        epochs: number of passes over the training images; by default more for few images, fewer for many.
        batch_size: images per batch and device.
        image_size: side of the square canvas, in pixels.
        backbone: a timm model, instead of the one that `size` decides.
        weights: start from this checkpoint, with its model and size; classes of the same name keep their weights.
        pretrained: start the backbone from ImageNet weights.
        adapt: what is trained: everything (`full`), everything but the backbone (`head`), or adapters of a few MB in a
            frozen network (`lora`). `head` and `lora` store only what is not in the base.
        rank: rank of the adapters of `lora`.
        teacher: a checkpoint whose feature maps and detections are learned from, too; see `boxwright distill`.
        augment: augmentation of the images.
        optim: optimizer and schedule.
        seed: seed of all random draws.
        device: auto, cpu, cuda or mps.
        precision: auto is bf16-mixed on GPUs that compute it natively, and 32-true otherwise.
        devices: number of devices on this machine; torchrun sets its own.
        nodes: number of machines; the launcher starts the same command on each.
        cache: keep the images as raw pixels, or as JPEG if there is little disk space; auto decides. `grow` begins at
            once, and keeps each image when it is first used.
        recipe: take what you leave open from a recipe of this name, which comes with the package.
        resume: continue the run in `out` exactly where its state was saved.
        show_batches: only write `batches.png`, a picture of the first batch, into `out`; no training.

    Returns:
        The run's folder: best.safetensors, last.safetensors, state.safetensors, metrics.csv, curves.png,
        config.yaml, tensorboard/, validation/ and, of detectors that can be explained, explain/.
    """
    augment, optim = from_mapping("augment", augment, Augment), from_mapping("optim", optim, Optim)
    device = device if isinstance(device, str) else choose_device(device)[0]
    config = RunConfig(
        data=as_location(data), model=model, size=size, out=Path(out), val_data=val_data, val=val,
        train_split=train_split, val_split=val_split, epochs=epochs, batch_size=batch_size, image_size=image_size,
        backbone=backbone, weights=weights, pretrained=pretrained, adapt=adapt, rank=rank, teacher=teacher,
        augment=augment, optim=optim, seed=seed, device=device, precision=precision, devices=devices,
        nodes=nodes, cache=cache,
    )  # fmt: skip
    if recipe is not None:
        config = fill_in_settings(config, recipe_settings(recipe))
    if resume and (config.out / CONFIG).is_file():
        make_console().print(f"settings left at their defaults are those of {config.out / CONFIG}")
        config = as_begun(config)
    return run(resolve(config), resume, show_batches)


@usual_torch()
def run(config: RunConfig, resume: bool = False, show_batches: bool = False, teacher: Detector | None = None) -> Path:
    """Train, and report on the console.

    Args:
        config: the settings, as `resolve` returns them; the epochs may be open.
        resume, show_batches: see `train`.
        teacher: to learn from, where `config.teacher` is no checkpoint of ours.

    Returns:
        The run's folder, see `train`.
    """
    require_writable(config.out)
    if resume and not (config.out / STATE).is_file() and _is_begun(config.out):
        make_console().print(f"{config.out} has no state yet: the run starts again")
        resume = False
    source = None if config.weights is None else load_detector(config.weights)
    taught_by = load_detector(config.teacher) if config.teacher is not None and teacher is None else teacher
    names, records, val_records = read_data(config)
    config = decide_epochs(config, len(records), resume)
    if not (resume or show_batches):
        _require_unused(config.out)
    fabric, machine = make_fabric(config.device, config.precision, config.devices, config.nodes)
    with locked(config.out) if fabric.is_global_zero else nullcontext():
        if not (resume or show_batches):
            _require_unused(config.out)  # once more: another process may have been faster
        if fabric.is_global_zero:
            remove_temporary(config.out, WRITTEN)
        return _run(config, (names, records, val_records), (source, taught_by), (fabric, machine), resume, show_batches)


def _run(
    config: RunConfig,
    data: tuple[tuple[str, ...], Sequence[Record], Sequence[Record]],
    detectors: tuple[Detector | None, Detector | None],
    computer: tuple[Fabric, str],
    resume: bool,
    show_batches: bool,
) -> Path:
    """`run` in a folder that no other process writes.

    Args:
        config: the settings, all decided.
        data: classes, training images, validation images.
        detectors: that of `config.weights`, and that of `config.teacher`.
        computer: what computes, and a text that says why.
        resume, show_batches: see `train`.
    """
    (names, records, val_records), (source, taught_by), (fabric, machine) = data, detectors, computer
    console = make_console(quiet=not fabric.is_global_zero)
    torch.manual_seed(config.seed)
    detector, origin = make_detector(config, source, names)
    teacher = None if taught_by is None else Teacher(taught_by, detector)
    card = _card(config, detector, teacher, len(records))
    if resume:
        begun = read_progress(config.out, card["settings"].get("teacher", ""))
        RunIdentity(card["settings"], names, records, {}).require_same(begun, config, is_adapted(detector))
    train_cache, val_cache = (
        open_batches(part, detector.image_size, mode=config.cache, quiet=console.quiet, purpose=purpose)
        for part, purpose in ((records, "training"), (val_records, "validation"))
    )
    if problem := _cannot_mix(config, len(records)):
        console.print(problem, style="yellow")
    if show_batches:
        return _show_batches(config, train_cache, names, records)
    checksums = checksums_of_data((train_cache, records), (val_cache, val_records), names)
    identity = RunIdentity(card["settings"], names, records, checksums)
    loop = Loop(fabric, detector, config, train_cache, (val_cache, val_records), card, identity, teacher, resume)
    if loop.adjusted:
        anew = "the learning-rate schedule is recomputed"
        console.print(f"the run goes on after step {loop.progress.step} with {', '.join(loop.adjusted)}; {anew}")
    if fabric.is_global_zero:
        config.write()
    if teacher is not None:
        origin += f", taught by the {card['taught by']} ({len(teacher.known)} of {len(names)} classes)"
    console.print(f"{machine}\n{_introduction(detector, origin, records, val_records)}")
    _train_to_end(loop, console)
    if loop.progress.best_ap < NOTHING:
        hints = diagnose(config, detector, records, val_records)
        console.print(report(loop.progress.best_ap, hints), style="yellow")
    return config.out


def _cannot_mix(config: RunConfig, images: int) -> str:
    """A text that says why images are not mixed with others, although they should be, or an empty one."""
    assert config.batch_size is not None
    asked = [f"--augment.{name}" for name in ("mosaic", "mixup", "copy_blend") if getattr(config.augment, name)]
    if not asked:
        return ""
    what = f"{', '.join(asked)}: images are mixed with others of their batch"
    if config.batch_size // (config.augment.views or 1) < 2:
        return f"{what}, which has only one; they stay as they are. --batch-size 4 or more mixes them."
    return f"{what}, and there is only one to train on; it is mixed with itself." if images == 1 else ""


def _is_begun(out: Path) -> bool:
    """Whether a run was begun in a folder, and ended before anything of it was saved."""
    return (out / CONFIG).is_file() and not any((out / name).exists() for name in (STATE, BEST, LAST))


def _require_unused(out: Path) -> None:
    """Never overwrite the weights of another run, even if its state was deleted."""
    there = [name for name in (STATE, BEST, LAST) if (out / name).exists()]
    taken = f"{out} holds a run already ({', '.join(there)})"
    if there and STATE not in there:
        weights = (out / there[-1]).with_suffix("")
        raise UserError(
            f"{taken}, but no {STATE} to resume; give another --out, with --weights {weights} to begin there."
        )
    require(not there, f"{taken}; add --resume to go on with it, or give another --out.")


def _card(config: RunConfig, detector: Detector, teacher: Teacher | None, images: int) -> dict[str, Any]:
    """Facts about the run that are stored with the weights."""
    settings = config.fixed()
    card = {"trained on": f"{images} images of {name_of(config.data)}", "settings": settings}
    if is_adapted(detector):
        settings["base"] = vars(detector)["adapted_from"].checksum
    if teacher is not None:
        settings["teacher"] = teacher.checksum
        card["taught by"] = f"{registry.name_of(teacher.detector)} of {config.teacher}"
    if origin := detector.backbone.origin:
        card["began from"] = origin
    return card


def _train_to_end(loop: Loop, console: Console) -> None:
    """Run the loop and report how it ended; the curves are drawn whatever happens."""
    out = loop.config.out
    try:
        progress = loop.run()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            step = f"step {loop.progress.step} of {loop.total}"
            console.print(f"stopped at {step}; the same command with --resume goes on")
        with suppress(UserError):  # what stopped the run is the news, not that its curves can't be written either
            _draw_curves(loop)
        raise
    _draw_curves(loop)
    console.print(f"best AP {progress.best_ap:.3f} after epoch {progress.best_epoch}: {out / 'best.safetensors'}")
    if loop.fabric.is_global_zero:
        console.print(_thresholds(out / "best.safetensors", loop.detector.names))
    console.print(f"curves: {out / 'curves.png'}   next: boxwright evaluate {out / 'best'} DATA")


def _thresholds(weights: Path, names: Sequence[str]) -> str:
    """Which objects count in `predict`: those over the thresholds in the model card."""
    stored = Thresholds.from_card(json.loads(read_header(weights)["card"]))
    return f"`predict` shows objects with a {stored.describe(names)}"


def _draw_curves(loop: Loop) -> None:
    table, chart = loop.config.out / "metrics.csv", loop.config.out / "curves.png"
    if loop.fabric.is_global_zero and table.is_file():
        write_whole(chart, lambda temporary: charts.curves(table, temporary))


def _show_batches(config: RunConfig, cache: BatchSource, names: tuple[str, ...], records: Sequence[Record]) -> Path:
    """Draw the first batch as the network gets it."""
    assert config.batch_size is not None
    batches = train_batches(cache, config.batch_size, config.augment, seed=config.seed, epoch=0, epochs=config.epochs)
    picture = show_batch(next(batches), names, records)
    write_whole(config.out / "batches.png", lambda temporary: picture.save(temporary, format="png"))
    make_console().print(f"what the network sees: {config.out / 'batches.png'}")
    return config.out


def _introduction(detector: Detector, what: str, records: Sequence[Record], val_records: Sequence[Record]) -> str:
    count = sum(p.numel() for p in detector.parameters())
    learning = sum(p.numel() for p in detector.parameters() if p.requires_grad)
    classes = enumerate_classes(detector.names)
    few = too_few(detector.names, count_labels(val_records, len(detector.names)).tolist())
    return (
        f"{what}, {detector.image_size} px, {count / 1e6:.1f} M parameters, {learning / 1e6:.1f} M learning\n"
        f"{len(records)} images to train on, {len(val_records)} to validate on; classes: {classes}"
        + "".join(f"\nvalidation: {sentence}" for sentence in few)
    )

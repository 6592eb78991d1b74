"""The verb `train`: decides everything that was left open, says so, and runs the loop."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from rich.console import Console

from boxwright.checkpoints.detector_file import is_adapter, load_detector
from boxwright.checkpoints.locate import find_weights
from boxwright.checkpoints.lora import adapt as adapt_detector
from boxwright.checkpoints.lora import checksum, is_adapted
from boxwright.config import Adapt, Augment, DetectorName, Optim, Size, UserError, fill_in, require
from boxwright.console import make_console
from boxwright.data.cache import Cache
from boxwright.data.cache import build as build_cache
from boxwright.data.loader import check as check_augment
from boxwright.data.loader import train_batches
from boxwright.data.read import merge_val, name_splits, read, train_and_val
from boxwright.data.records import Record
from boxwright.files import write_whole
from boxwright.models import registry
from boxwright.training import recipes
from boxwright.training.checkpoint import FILE as STATE
from boxwright.training.fabric import Precision, make_fabric
from boxwright.training.loop import Loop, RunConfig
from boxwright.training.optim import check as check_optim
from boxwright.training.teacher import Teacher
from boxwright.types import Detector
from boxwright.visualization import charts
from boxwright.visualization.images import show_batch

PLACES = ("data", "val_data", "teacher", "out", "device", "devices", "nodes", "precision", "cache")  # where, not what


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
    cache: Literal["auto", "pixels", "jpeg"] = "auto",
    resume: bool = False,
    show_batches: bool = False,
) -> Path:
    """Train a detector on annotated images.

    The detector's recipe decides what you leave open (shown as null). `config.yaml` in the run's folder holds all
    settings and repeats the run: ``boxwright train --config RUN/config.yaml --out AGAIN``.

    Args:
        data: a COCO, VOC or YOLO data set, a folder or file.
        model: the detector; by default dense, or that of `weights` or `teacher`.
        size: decides backbone, width, depth and image size; by default nano, or that of `weights`.
        out: folder of the run; it must not contain another run, unless with `resume`.
        val_data: a second data set to validate on, with the same class names.
        val: share of the training images held out for validation if the data has no val split.
        train_split: split to train on instead of train; join several with a plus, as in train+val.
        val_split: split to validate on instead of val.
        epochs: number of passes over the training images.
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
        cache: keep the images as raw pixels, or as JPEG if there is little disk space; auto decides.
        resume: continue the run in `out` exactly where its state was saved.
        show_batches: only write `batches.png`, a picture of the first batch, into `out`; no training.

    Returns:
        The run's folder: best.safetensors, last.safetensors, state.safetensors, metrics.csv, curves.png,
        config.yaml, tensorboard/ and, of a detector that writes sentences, explain/.
    """
    data, out = Path(data), Path(out)
    given = {name: value for name, value in locals().items() if name not in ("resume", "show_batches")}
    _check_numbers(given)
    source = None if weights is None else _source(weights, model, size, backbone)
    knowing = None if teacher is None else load_detector(teacher)
    if source is None:
        given |= {"model": model or _usual_model(knowing), "size": size or "nano"}
    if source is None:
        recipe = recipes.recipe(given["model"], given["size"], backbone)
    else:
        recipe = recipes.recipe(registry.name_of(source), backbone=source.config.backbone)  # type: ignore[union-attr]
    augment, optim = fill_in(augment, recipe.augment), fill_in(optim, recipe.optim)
    epochs, batch_size = epochs or recipe.epochs, batch_size or recipe.batch_size
    check_augment(augment)
    check_optim(optim)
    given |= {"augment": asdict(augment), "optim": asdict(optim), "epochs": epochs, "batch_size": batch_size}
    names, records, val_records = _data(data, val_data, train_split, val_split, val, seed)
    if not (resume or show_batches):
        _require_unused(out)

    fabric, machine = make_fabric(device, precision, devices, nodes)
    console = make_console(quiet=not fabric.is_global_zero)
    torch.manual_seed(seed)
    detector, what = _detector(source, given, names)
    registry.check_image_size(detector)
    what += _adapt(detector, source, given)
    lessons = None if knowing is None else Teacher(knowing, detector)
    train_cache, val_cache = (
        build_cache(part, detector.image_size, mode=cache, quiet=console.quiet) for part in (records, val_records)
    )
    if show_batches:
        return _show_batches(train_cache, names, batch_size, augment, seed, out)

    config = {name: _plain(value) for name, value in given.items()}
    decided = {name: value for name, value in config.items() if name not in PLACES}
    if is_adapted(detector):
        decided["base"] = vars(detector)["adapted_from"].checksum
    card = {"trained on": f"{len(records)} images of {data.name}", "settings": decided}
    if lessons is not None:
        decided["teacher"] = checksum(lessons.detector.state_dict())
        card["taught by"] = f"{registry.name_of(lessons.detector)} of {teacher}"
        what += f", taught by the {card['taught by']} ({len(lessons.known)} of {len(names)} classes)"
    if origin := detector.backbone.origin:
        card["began from"] = origin
    digest, taught_by = _digest(decided, names, records), decided.get("teacher", "")
    plan = RunConfig(out, epochs, batch_size, augment, optim, seed, card, digest, taught_by)
    loop = Loop(fabric, detector, plan, train_cache, (val_cache, val_records), resume, lessons)
    if fabric.is_global_zero:
        text = yaml.safe_dump(config, sort_keys=False)
        write_whole(out / "config.yaml", lambda temporary: temporary.write_text(text))
    console.print(f"{machine}\n{_introduction(detector, what, records, val_records)}")
    _run(loop, out, console)
    return out


def _data(
    data: Path, val_data: Path | str | None, train_split: str | None, val_split: str | None, val: float, seed: int
) -> tuple[tuple[str, ...], list[Record], list[Record]]:
    """Classes, training images, validation images."""
    dataset = name_splits(read(data), train_split, val_split)
    if val_data is not None:
        dataset = merge_val(dataset, read(val_data))
    return dataset.names, *train_and_val(dataset, val, seed)


def _run(loop: Loop, out: Path, console: Console) -> None:
    """The loop with a last word; the curves are drawn whatever happens."""
    try:
        progress = loop.run()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            step = f"step {loop.progress.step} of {loop.total}"
            console.print(f"stopped at {step}; the same command with --resume goes on")
        with suppress(UserError):  # what stopped the run is the news, not that its curves can't be written either
            _draw_curves(loop, out)
        raise
    _draw_curves(loop, out)
    console.print(f"best AP {progress.best_ap:.3f} after epoch {progress.best_epoch}: {out / 'best.safetensors'}")
    console.print(f"curves: {out / 'curves.png'}   next: boxwright evaluate {out / 'best'} DATA")


def _draw_curves(loop: Loop, out: Path) -> None:
    if loop.fabric.is_global_zero and (out / "metrics.csv").is_file():
        write_whole(out / "curves.png", lambda temporary: charts.curves(out / "metrics.csv", temporary))


def _show_batches(
    cache: Cache, names: tuple[str, ...], batch_size: int, augment: Augment, seed: int, out: Path
) -> Path:
    """One picture of the first batch as the network gets it."""
    picture = show_batch(next(train_batches(cache, batch_size, augment, seed=seed, epoch=0)), names)
    write_whole(out / "batches.png", lambda temporary: picture.save(temporary, format="png"))
    make_console().print(f"what the network sees: {out / 'batches.png'}")
    return out


def _introduction(detector: Detector, what: str, records: Sequence[Record], val_records: Sequence[Record]) -> str:
    count = sum(p.numel() for p in detector.parameters())
    learning = sum(p.numel() for p in detector.parameters() if p.requires_grad)
    return (
        f"{what}, {detector.image_size} px, {count / 1e6:.1f} M parameters, {learning / 1e6:.1f} M learning\n"
        f"{len(records)} images to train on, {len(val_records)} to validate on; classes: {', '.join(detector.names)}"
    )


def _check_numbers(given: dict[str, Any]) -> None:
    least = {"epochs": 1, "batch_size": 1, "image_size": 64, "devices": 1, "nodes": 1, "rank": 1}
    for name, low in least.items():
        require(given[name] is None or given[name] >= low, f"--{name} must be at least {low}, not {given[name]}.")
    require(0 <= given["seed"] < 2**63, f"--seed must be at least 0 and under 2^63, not {given['seed']}.")


def _require_unused(out: Path) -> None:
    """Weights are never written over those of another run, even where its state was thrown away."""
    there = [name for name in (STATE, "best.safetensors", "last.safetensors") if (out / name).exists()]
    said = f"{out} holds a run already ({', '.join(there)})"
    require(not there, f"{said}; add --resume to go on with it, or give another --out.")


def _source(weights: Path | str, model: DetectorName | None, size: Size | None, backbone: str | None) -> Detector:
    """The detector to begin from; its shape is decided already."""
    source = load_detector(weights)
    kind = registry.name_of(source)
    require(model in (None, kind), f"{weights} is a {kind}, not a {model}; leave --model out.")
    own = source.config.backbone  # type: ignore[union-attr]
    require(backbone in (None, own), f"the backbone of {weights} is {own}, not {backbone}; leave --backbone out.")
    require(size is None or registry.is_size(source, size), f"{weights} is not of size {size}; leave --size out.")
    return source


def _detector(source: Detector | None, given: dict[str, Any], names: tuple[str, ...]) -> tuple[Detector, str]:
    """The detector to train, and a word on where it comes from."""
    image_size, pretrained = given["image_size"], given["pretrained"]
    if source is None:
        model, size, backbone = given["model"], given["size"], given["backbone"]
        detector = registry.build(model, size, names, image_size=image_size, backbone=backbone, pretrained=pretrained)
        origin = detector.backbone.origin
        return detector, f"{model} {size}" + (f" from {origin}" if origin else "")
    new = [name for name in names if name not in source.names]
    known = f"it knows {len(names) - len(new)} of the {len(names)} classes" + (f", not {', '.join(new)}" if new else "")
    detector = source.with_classes(names, image_size, pretrained)
    return detector, f"{registry.name_of(source)} of {given['weights']} ({known})"


def _adapt(detector: Detector, source: Detector | None, given: dict[str, Any]) -> str:
    """Put at rest what shall not learn, and say so."""
    how, weights = given["adapt"], given["weights"]
    if how == "full":
        return ""
    known = source is not None or (given["pretrained"] and detector.backbone_parameters())
    require(known, f"--adapt {how} adapts what is known, and this backbone begins at random; give --weights.")
    rank = given["rank"] if how == "lora" else None
    if source is None:
        adapt_detector(detector, rank, None, detector.config.backbone)  # type: ignore[union-attr]
    else:
        mend = f"merge it first: boxwright.merge({str(weights)!r}, 'merged.safetensors')"
        require(not is_adapter(weights), f"{weights} is an adapter and can't be the base of another; {mend}.")
        file = find_weights(Path(weights))
        adapt_detector(detector, rank, source, str(weights), file.parent.resolve() / file.name)
    return f", adapters of rank {rank}" if rank else ", the backbone at rest"


def _usual_model(teacher: Detector | None) -> str:
    """The teacher's kind; of one that is only imported, and of none, `dense`."""
    kind = "dense" if teacher is None else registry.name_of(teacher)
    return kind if registry.DETECTORS[kind][2] else "dense"


def _digest(decided: dict[str, Any], names: Sequence[str], records: Sequence[Record]) -> str:
    """Of the settings and data that change what a step computes."""
    images = [(record.path.name, record.boxes_N4.tolist()) for record in records]
    return hashlib.sha256(json.dumps([decided, list(names), images], sort_keys=True).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """A setting as YAML can say it."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value

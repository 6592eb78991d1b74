"""The verb `train`: decides everything that was left open, says so, and runs the loop."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from lightning_fabric import Fabric
from rich.console import Console

from boxwright import show
from boxwright.config import Augment, DetectorName, Optim, Size, UserError, fill_in, require
from boxwright.data.cache import build as build_cache
from boxwright.data.loader import train_batches
from boxwright.data.read import choose_splits, read
from boxwright.data.records import Record
from boxwright.files import write_whole
from boxwright.models import zoo
from boxwright.models.weights import load_detector
from boxwright.training.loop import Loop, Plan
from boxwright.types import Detector

Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]


def train(
    data: Path,
    model: DetectorName = "dense",
    size: Size = "nano",
    out: Path = Path("runs/train"),
    *,
    val_data: Path | None = None,
    val: float = 0.2,
    train_split: str = "train",
    val_split: str = "val",
    epochs: int | None = None,
    batch_size: int | None = None,
    image_size: int | None = None,
    backbone: str | None = None,
    weights: Path | None = None,
    pretrained: bool = True,
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

    What is left open (shown as null) is decided by the detector's recipe; `config.yaml` in the run's folder says
    what was decided and repeats the run: ``boxwright train --config RUN/config.yaml --out AGAIN``.

    Args:
        data: a COCO, VOC or YOLO data set, a folder or file.
        model: which detector.
        size: the one dial: backbone, width and image size follow from it.
        out: folder of the run; must not hold another run unless resuming.
        val_data: a second data set to validate on, with the same class names.
        val: fraction of the training images kept for validation where the data names no such split; 0 for none.
        train_split: split to train on; several are joined by a plus, as in train+val.
        val_split: split to validate on, where the data names it.
        epochs: passes over the training images.
        batch_size: images a device sees at once.
        image_size: side of the square canvas, in pixels.
        backbone: a timm model instead of the size's own.
        weights: start from this checkpoint's weights instead of ImageNet's (same model, size and classes).
        pretrained: start the backbone from ImageNet weights.
        augment: how images are varied.
        optim: how weights move.
        seed: of every random draw.
        device: auto, cpu, cuda or mps.
        precision: auto takes bf16-mixed on GPUs that have it and 32-true elsewhere.
        devices: how many on this machine; under torchrun its own count is taken.
        nodes: how many machines; the launcher starts the same command on each.
        cache: keep images as raw pixels, or as JPEG where disk is short.
        resume: continue the run in `out` exactly where its state was saved.
        show_batches: only write `batches.png`, a picture of what the network would see, into `out`.

    Returns:
        The run's folder: best.safetensors, last.safetensors, state.safetensors, metrics.csv, curves.png,
        config.yaml and tensorboard/.
    """
    given = {key: value for key, value in locals().items() if key not in ("resume", "show_batches")}
    console = Console()
    _check_numbers(epochs, batch_size, image_size)
    recipe = zoo.recipe(model)
    augment, optim = fill_in(augment, recipe.augment), fill_in(optim, recipe.optim)
    epochs, batch_size = epochs or recipe.epochs, batch_size or recipe.batch_size
    dataset = read(data)
    train_records, val_records = choose_splits(
        dataset, train_split, val_split, read(val_data) if val_data else None, fraction=val, seed=seed
    )
    given |= {"epochs": epochs, "batch_size": batch_size, "augment": asdict(augment), "optim": asdict(optim)}
    digest = _digest(given, dataset.names, train_records)
    if not show_batches:
        _claim_folder(out, resume, digest)

    fabric, reasons = make_fabric(device, precision, devices, nodes)
    fabric.seed_everything(seed, verbose=False)
    detector = _make_detector(weights, model, size, dataset.names, image_size, backbone, pretrained and not resume)
    console.quiet = not fabric.is_global_zero
    side = detector.image_size
    train_cache = build_cache(train_records, side, mode=cache, quiet=console.quiet)
    val_cache = build_cache(val_records, side, mode=cache, quiet=console.quiet) if val_records else None
    if show_batches:
        batch = next(train_batches(train_cache, batch_size, augment, seed=seed, epoch=0))
        picture = show.show_batch(batch, dataset.names)
        write_whole(out / "batches.png", lambda temporary: picture.save(temporary, format="png"))
        console.print(f"what the network sees: {out / 'batches.png'}")
        return out

    _introduce(console, detector, model, size, reasons, len(train_records), len(val_records), epochs)
    config = {key: _plain(value) for key, value in given.items()}
    if fabric.is_global_zero:
        write_whole(out / "config.yaml", lambda temporary: temporary.write_text(yaml.safe_dump(config, sort_keys=False)))
    card = {"data": dataset.root.name, "images": len(train_records), "command": config}
    plan = Plan(out, epochs, batch_size, augment, optim, seed, card, digest)
    loop = Loop(fabric, detector, plan, train_cache, (val_cache, val_records) if val_cache else None, resume)
    try:
        progress = loop.run()
    except KeyboardInterrupt:
        console.print(f"\nstopped at step {loop.progress.step} of {loop.total}; go on with the same command and --resume")
        raise
    finally:
        if fabric.is_global_zero and (out / "metrics.csv").is_file():
            write_whole(out / "curves.png", lambda temporary: show.curves(out / "metrics.csv", temporary))
    if val_cache:
        console.print(f"best AP {progress.best_ap:.3f} after epoch {progress.best_epoch}: {out / 'best.safetensors'}")
    console.print(f"curves: {out / 'curves.png'}   next: boxwright evaluate {out}/best {data}")
    return out


def make_fabric(device: str, precision: str, devices: int, nodes: int) -> tuple[Fabric, str]:
    """A launched Fabric, and one line on what was chosen and why."""
    kind, why = choose_device(device)
    if precision == "auto":
        half = kind == "cuda" and torch.cuda.is_bf16_supported()
        precision = "bf16-mixed" if half else "32-true"
        why += "; bf16 mixed precision, which this GPU computes natively" if half else "; full precision"
    devices = int(os.environ.get("LOCAL_WORLD_SIZE", devices))
    strategy = "ddp" if devices * nodes > 1 else "auto"
    fabric = Fabric(accelerator=kind, devices=devices, num_nodes=nodes, precision=precision, strategy=strategy)  # type: ignore[arg-type]
    fabric.launch()
    return fabric, f"{kind} x {devices * nodes} ({why})"


def choose_device(device: str) -> tuple[str, str]:
    """The accelerator to use and the reason: ``auto`` takes a GPU where there is one."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        kind = next(name for name, there in available.items() if there)
        return kind, "found" if kind != "cpu" else "no GPU found"
    require(device in available, f"--device is auto, cpu, cuda or mps, not {device!r}.")
    require(available[device], f"--device {device}: torch {torch.__version__} sees none here; use --device auto.")
    return device, "as asked"


def _check_numbers(epochs: int | None, batch_size: int | None, image_size: int | None) -> None:
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        require(value is None or value >= 1, f"--{name} must be at least 1, not {value}.")
    require(image_size is None or image_size >= 64, f"--image_size must be at least 64 pixels, not {image_size}.")


def _make_detector(
    weights: Path | None,
    model: DetectorName,
    size: Size,
    names: tuple[str, ...],
    image_size: int | None,
    backbone: str | None,
    pretrained: bool,
) -> Detector:
    detector = zoo.build(model, size, names, image_size=image_size, backbone=backbone, pretrained=pretrained)
    if weights is not None:
        source = load_detector(weights)
        same = zoo.name_of(source) == model and replace_size(source, detector) and source.names == names
        require(same, f"{weights} is a {zoo.name_of(source)} of other shape or classes; leave out --weights or match it.")
        detector.load_state_dict(source.state_dict())
    return detector


def replace_size(source: Detector, detector: Detector) -> bool:
    """Whether two detectors differ in nothing but the canvas."""
    a, b = source.config, replace(detector.config, image_size=source.image_size)  # type: ignore[arg-type,type-var]
    return a == b


def _claim_folder(out: Path, resume: bool, digest: str) -> None:
    """Refuse to write over another run."""
    state = out / "state.safetensors"
    if not resume:
        require(not state.exists(), f"{out} holds a run already; add --resume to go on with it, or give another --out.")


def _digest(given: dict[str, Any], names: Sequence[str], records: Sequence[Record]) -> str:
    """Of the settings and data that change what a step computes."""
    places = ("out", "device", "devices", "nodes", "precision", "cache", "data", "val_data")
    facts = {key: _plain(value) for key, value in given.items() if key not in places}
    images = [(record.path.name, record.boxes_N4.tolist()) for record in records]
    return hashlib.sha256(json.dumps([facts, list(names), images], sort_keys=True).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """A setting as YAML can say it."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value

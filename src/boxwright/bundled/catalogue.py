"""The command `models`: the detectors, their sizes, measured numbers, and where their weights come from.

The numbers are in measured.json, which `benchmarks/measure_models.py` writes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm

from boxwright.checkpoints.header import read_header
from boxwright.checkpoints.locate import BUNDLED
from boxwright.classes import enumerate_classes
from boxwright.console import make_console
from boxwright.models import registry
from boxwright.models.backbones.backbone import OFFLINE

MEASURED = Path(__file__).parent / "measured.json"
CODE = "Apache-2.0"
GOOD_FOR = {
    "dense": "small data, speed, the CPU",
    "pix2seq": "some objects given, the rest completed; a sequence to watch and explain; published weights",
    "patchseq": "some objects given, the rest completed; research",
    "detr": "few epochs; attention over the whole image, to explain; published weights",
    "deformable": "few epochs; published weights; accuracy before speed",
}
INSTALLED, IMPORTED = "installed", "import-weights"
HEAD = ("size", "px", "M param.", "CPU ms", "backbone", "its licence", "its weights", "AP measured")


@dataclass(frozen=True)
class Entry:
    """One size of one detector.

    Attributes:
        model, size: as `train` takes them.
        good_for: when to take the detector.
        backbone: of timm, or of the detector's own.
        image_size: side of the canvas, in pixels.
        parameters: how many; 0 where not measured.
        cpu_ms: milliseconds per image on one CPU core, untrained, so that a sequence has its full length; 0 where not
            measured.
        scores: AP with data and settings, in words.
        source: where its initial weights come from.
        licence: that of those weights.
    """

    model: str
    size: str
    good_for: str
    backbone: str
    image_size: int
    parameters: int
    cpu_ms: float
    scores: tuple[str, ...]
    source: str
    licence: str


def list_models() -> list[Entry]:
    """Every detector of the registry in every size that can be trained from scratch."""
    measured = json.loads(MEASURED.read_text()) if MEASURED.is_file() else {}
    return [
        _entry(model, size, config, measured.get(f"{model}/{size}", {}))
        for model, (_, _, sizes) in registry.DETECTORS.items()
        for size, config in sizes.items()
    ]


def _entry(model: str, size: str, config: Any, numbers: dict[str, Any]) -> Entry:
    about = GOOD_FOR.get(model) or (registry.DETECTORS[model][0].__doc__ or "").partition("\n")[0]
    scores = tuple(
        f"{s['ap']:.3f} ({s['data']}, {s['image_size']} px, {s['epochs']} epochs)" for s in numbers.get("scores", ())
    )
    parameters, cpu_ms = numbers.get("parameters", 0), numbers.get("cpu_ms", 0.0)
    source, licence = origin(config.backbone)
    return Entry(
        model, size, about, config.backbone, config.image_size, parameters, cpu_ms, scores, source, licence
    )  # fmt: skip


def origin(backbone: str) -> tuple[str, str]:
    """Where the weights of a backbone come from, and their licence."""
    config = timm.get_pretrained_cfg(backbone) if timm.is_model(backbone) else None
    if config is None or not (config.hf_hub_id or config.url or backbone in OFFLINE):
        return IMPORTED, "-"
    where = INSTALLED if backbone in OFFLINE else f"hub: {config.hf_hub_id or config.url}"
    return where, config.license or "not stated"


def models() -> list[Entry]:
    """List the detectors: sizes, what each is good for, measured speed and accuracy, weights and licences.

    Weights of your own and of others are given by path, by the folder of a run or of a hub snapshot, or by the name of
    a hub repository (owner/name, or hf://owner/name@revision).

    Returns:
        A list with an entry for each size of each detector.
    """
    entries, console = list_models(), make_console()
    lines = [[str(cell) for cell in _cells(entry)] for entry in entries]
    widths = [max(len(line[n]) for line in [HEAD, *lines]) for n in range(len(HEAD))]
    for model in dict.fromkeys(entry.model for entry in entries):
        sizes = [line for entry, line in zip(entries, lines, strict=True) if entry.model == model]
        about = next(entry.good_for for entry in entries if entry.model == model)
        console.print(f"\n{model}: {about}", style="bold")
        for line in [HEAD, *sizes]:
            console.print(_aligned(line, widths), style="dim" if line is HEAD else None)
    console.print("\nTrained, and installed; the name stands for the weights in every command:", style="bold")
    for name, file in BUNDLED.items():
        header = read_header(file)
        classes, config = json.loads(header["names"]), json.loads(header["config"])
        console.print(f"  {name}: {header['model']}, {config['image_size']} px, {enumerate_classes(classes)}")
    console.print(_legend(entries[0]))
    return entries


def _cells(entry: Entry) -> tuple[str | int, ...]:
    """An entry in the order of `HEAD`."""
    parameters = f"{entry.parameters / 1e6:.1f}" if entry.parameters else "-"
    cpu_ms, scores = f"{entry.cpu_ms:,.0f}" if entry.cpu_ms else "-", "; ".join(entry.scores) or "-"
    about = (entry.backbone, entry.licence, entry.source)
    return (entry.size, entry.image_size, parameters, cpu_ms, *about, scores)


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Numbers at the right of their columns, words at the left."""
    pairs = enumerate(zip(cells, widths, strict=True))
    return "  " + "  ".join(f"{cell:>{w}}" if 0 < n < 4 else f"{cell:<{w}}" for n, (cell, w) in pairs).rstrip()


def _legend(first: Entry) -> str:
    return (
        "\nCPU ms: per image on one core, untrained, so that a sequence has its full length "
        "(benchmarks/measure_models.py).\n"
        f"{INSTALLED}: the weights came with the installation. hub: fetched once, when a training begins. {IMPORTED}: "
        f"none; begin from a published checkpoint.\nLicence of all code: {CODE}.\n"
        f"Train one: boxwright train DATA --model {first.model} --size {first.size}\n"
        "See which suits your images: boxwright compare DATA"
    )

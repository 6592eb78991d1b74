"""The verb `models`: which detectors there are, in which sizes, what is known of them and where their weights are from.

The numbers are in measured.json, which `benchmarks/zoo.py` writes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from rich.table import Table

from boxwright.console import make_console
from boxwright.models import zoo
from boxwright.models.backbone import OFFLINE

MEASURED = Path(__file__).parent / "measured.json"
CODE = "Apache-2.0"
GOOD_FOR = {
    "dense": "small data, speed, the CPU",
    "pix2seq": "published weights; research; objects given, the rest completed",
    "patchseq": "sentences where time to train is short; research",
    "detr": "published weights; from ImageNet alone it needs much data and many epochs",
    "deformable": "few epochs; published weights; accuracy before speed",
}
IMPORTED = "none: begin from imported ones (boxwright import-weights)"


@dataclass(frozen=True)
class Entry:
    """One size of one detector.

    Attributes:
        model, size: as `train` takes them.
        good_for: when to take the detector.
        backbone: of timm, or of the detector's own.
        image_size: side of the canvas, in pixels.
        parameters: how many; 0 where not measured.
        cpu_ms: milliseconds an image on one CPU core, untrained, so that a sentence has its full length; 0 where not
            measured.
        scores: AP with data and settings, in words.
        source: where the weights come from that it begins with.
        licence: of those weights.
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
    """Every detector in every size that can be begun, as the zoo has them."""
    measured = json.loads(MEASURED.read_text()) if MEASURED.is_file() else {}
    return [
        _entry(model, size, config, measured.get(f"{model}/{size}", {}))
        for model, (_, _, sizes) in zoo.DETECTORS.items()
        for size, config in sizes.items()
    ]


def _entry(model: str, size: str, config: Any, numbers: dict[str, Any]) -> Entry:
    about = GOOD_FOR.get(model) or (zoo.DETECTORS[model][0].__doc__ or "").partition("\n")[0]
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
    licence = config.license or "not stated"
    where = "with the installation" if backbone in OFFLINE else f"the hub, {config.hf_hub_id or config.url}"
    return f"{backbone}: {where}", licence


def models() -> list[Entry]:
    """List the detectors: sizes, what each is good for, measured speed and accuracy, weights and licences.

    Weights of your own and of others are given by path, by the folder of a run or of a hub snapshot, or by the name of
    a hub repository (owner/name, or hf://owner/name@revision).

    Returns:
        A list with an entry for each size of each detector.
    """
    entries, console = list_models(), make_console()
    for model in dict.fromkeys(entry.model for entry in entries):
        sizes = [entry for entry in entries if entry.model == model]
        console.print(f"{model}: {sizes[0].good_for}", style="bold")
        console.print(_table(sizes))
    console.print(
        f"CPU ms: an image on one core, untrained (a sentence is then as long as can be), {MEASURED.name} of "
        f"benchmarks/zoo.py. Code: {CODE}.\nTrain one: boxwright train DATA --model {entries[0].model} --size "
        f"{entries[0].size}   See which suits your images: boxwright compare DATA"
    )
    return entries


def _table(entries: list[Entry]) -> Table:
    table = Table("  size", box=None, header_style="dim", pad_edge=False)
    for column in ("px", "M parameters", "CPU ms"):
        table.add_column(column, justify="right")
    for column in ("begins with", "their licence", "AP"):
        table.add_column(column, overflow="fold")
    for e in entries:
        numbers = [f"{e.parameters / 1e6:.1f}" if e.parameters else "-", f"{e.cpu_ms:,.0f}" if e.cpu_ms else "-"]
        table.add_row(f"  {e.size}", str(e.image_size), *numbers, e.source, e.licence, "; ".join(e.scores) or "-")
    return table

"""The verb `import-weights`: a checkpoint of another project becomes one of ours, checked and described."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from glob import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from boxwright.checkpoints.detector_file import load_detector, save_detector
from boxwright.config import UserError, require
from boxwright.console import make_console
from boxwright.interop import classes as naming
from boxwright.interop import deformable, detr, hugging_face, pix2seq_shapes, replications
from boxwright.interop.foreign import Foreign
from boxwright.interop.pickles import read_pickle
from boxwright.interop.tensorbundle import find_bundle, index_of, read_bundle
from boxwright.models.deformable import Deformable
from boxwright.models.detr import Detr
from boxwright.types import Detector

MANY = 40  # names in an error, from which on not all are told
MOST_PIXELS = 10_000  # of a side of a canvas
OFFICIAL_SIZE = 640  # pixels; the smallest of the three that weights were published for
PROJECTS = (
    "google-research/pix2seq", *replications.REPOSITORIES.values(),
    detr.AUTHORS, detr.HUGGING_FACE, deformable.AUTHORS, deformable.HUGGING_FACE,
)  # fmt: skip


def import_weights(
    source: Path | str, out: Path | str, *, classes: str | None = None, image_size: int | None = None
) -> Path:
    """Convert a published checkpoint of another project, without TensorFlow and without running a pickle.

    Format, network and settings are recognised from the names and shapes of the tensors.

    Args:
        source: a TensorFlow checkpoint of google-research/pix2seq (ckpt-N, its .index, or their folder), the .pth file
            of DETR, Deformable DETR, Pretrained-Pix2Seq, Pix2seq-mmdetection, Stable-Pix2Seq or Unofficial-Pix2Seq, or
            a folder of Hugging Face's DETR or Deformable DETR (config.json and model.safetensors).
        out: the .safetensors file to write; it must not exist.
        classes: names of the classes if they are not COCO's and not in a Hugging Face folder: a COCO file, a text file
            with one name per line, or the names between commas.
        image_size: side of the canvas, in pixels; by default 640 for google-research/pix2seq (weights are published for
            1024 and 1333, too), the size in a Hugging Face folder, and 1333 for all others.

    Returns:
        The file written.

    Raises:
        UserError: if the file is not recognised, does not fit the network it seems to be, or holds code.
    """
    source = Path(source)
    require(image_size is None or image_size >= 64, f"--image_size must be at least 64, not {image_size}.")
    require(image_size is None or image_size <= MOST_PIXELS, f"--image_size {image_size} is more than {MOST_PIXELS}.")
    out = choose_out(Path(out))
    found, count = read_foreign(source, image_size)
    named = choose_classes(found, classes)
    detector = build(found, named, source)
    card = {
        "imported from": source.name,
        "written by": found.what,
        "guesses": list(found.notes),
        "parity": {"tensors of the file": count, "tensors equal bit for bit": len(found.state)},
    }
    write(out, detector, card)
    _report(out, detector, found, count)
    return out


def choose_out(out: Path) -> Path:
    """The file to write, with its ending.

    Raises:
        UserError: if it exists, or can't be.
    """
    require(out.name not in ("", ".."), "OUT must be the name of a file to write, with or without .safetensors.")
    out = out if out.suffix == ".safetensors" else out.with_name(out.name + ".safetensors")
    require(not out.exists(), f"{out} exists; give another name, or move it away.")
    above = next(folder for folder in out.absolute().parents if folder.exists())
    require(above.is_dir(), f"{out} can't be written: {above} is a file, not a folder; give another place.")
    return out


def read_foreign(source: Path, image_size: int | None = None) -> tuple[Foreign, int]:
    """The network that a checkpoint describes, with its image size, and how many tensors the file has of it."""
    if not source.exists() and not (source.name and index_of(source).exists()):
        data = next(source.parent.glob(f"{escape(source.name)}.data-*-of-*"), None) if source.name else None
        why = f": {data} has no index beside it, {index_of(source).name}" if data else ""
        raise UserError(f"{source} does not exist{why}.")
    prefix, folder, side = find_bundle(source), hugging_face.find_folder(source), None
    found: Foreign | None
    if prefix is not None:
        tensors: dict[str, Any] = read_bundle(prefix, pix2seq_shapes.of_the_network)
        settings = pix2seq_shapes.read_settings(prefix.parent)
        found = pix2seq_shapes.convert(tensors, settings)
        sides = settings.get("image_size", OFFICIAL_SIZE)
        side = max(sides) if isinstance(sides, list) else sides
    elif folder is not None:
        tensors, options = hugging_face.read_folder(folder)
        check_plain(tensors, folder)
        found, side = _of_detrs_kind(tensors, options, folder.name), hugging_face.longest_side(folder)
        if found is not None:
            found = replace(found, classes=hugging_face.class_names(options, len(found.numbers)))
    else:
        kinds = "a TensorFlow checkpoint has NAME.index, one of Hugging Face's config.json and model.safetensors"
        require(source.is_file(), f"{source} holds no checkpoint that can be imported: {kinds}.")
        tensors, options = read_pickle(source)
        check_plain(tensors, source)
        found = replications.convert(tensors, options.get("nheads"))
        found = found or _of_detrs_kind(tensors, options, source.name)
    some = ", ".join(sorted(tensors)[:3])
    known = ", ".join(PROJECTS)
    if found is None:
        raise UserError(f"{source} is of no project that can be imported ({known}); its tensors are called {some}...")
    require(found.numbers, f"{source} looks like {found.what}, but its vocabulary has no words for classes.")
    side = image_size or side or found.config.image_size
    return replace(found, config=replace(found.config, image_size=side)), len(tensors)


def _of_detrs_kind(tensors: Mapping[str, Tensor], options: Mapping[str, Any], name: str) -> Foreign | None:
    return detr.convert(tensors, options, name) or deformable.convert(tensors, options, name)


def check_plain(tensors: Mapping[str, Tensor], source: Path) -> None:
    """That all tensors are plain numbers, in rows and columns, that ours can take unchanged.

    Raises:
        UserError: with those that are sparse, complex, quantised, or without numbers.
    """
    odd = [name for name, value in tensors.items() if not _is_plain(value)]
    require(not odd, f"{source} holds tensors that are empty, sparse, complex or quantised: {listed(odd)}.")


def _is_plain(value: Tensor) -> bool:
    dense = value.layout == torch.strided and not value.is_nested and value.device.type == "cpu"
    return dense and not value.is_complex() and not value.is_quantized and value.numel() > 0


def choose_classes(found: Foreign, classes: str | None) -> naming.Classes:
    """The names that a user gives, or the files, or COCO's, or mere numbers."""
    if classes is not None:
        return naming.given(classes, found.numbers)
    if found.classes is not None:
        return found.classes
    return naming.coco() if found.coco else naming.numbered(found.numbers)


def build(found: Foreign, named: naming.Classes, source: Path) -> Detector:
    """The detector with the weights of the file.

    Raises:
        UserError: with all tensors that are unknown, missing, misshapen or not finite.
    """
    natural = named.numbers == tuple(range(found.numbers.start, found.numbers.start + len(named.names)))
    config = replace(found.config, class_ids=() if natural else named.numbers)
    try:
        with torch.device("meta"):  # shapes alone, before memory is taken for a network that may not be one
            own = found.detector(config, named.names, pretrained=False).state_dict()
    except (AssertionError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise UserError(f"{source} looks like {found.what}, but its shapes make no network ({error}).") from error
    faults = compare(found, {name: value.shape for name, value in own.items()})
    require(not faults, f"{source} looks like {found.what}, but does not fit: {'; '.join(faults)}.")
    detector = found.detector(config, named.names, pretrained=False)
    detector.load_state_dict(dict(found.state))
    kept = detector.state_dict()
    assert all(torch.equal(kept[name], value.to(kept[name].dtype)) for name, value in found.state.items())
    return detector.eval()


def compare(found: Foreign, own: dict[str, torch.Size]) -> list[str]:
    """What is wrong with the tensors of a file, by the names of the file where it has them."""

    def source(name: str) -> str:
        return found.sources.get(name, name)

    unknown = [*found.strange, *(source(name) for name in found.state if name not in own)]
    missing = [name for name in own if name not in found.state and not name.endswith("num_batches_tracked")]
    misshapen = [
        f"{source(name)} {tuple(value.shape)} instead of {tuple(own[name])}"
        for name, value in found.state.items()
        if name in own and value.shape != own[name]
    ]
    broken = [source(name) for name, value in found.state.items() if not value.isfinite().all()]
    kinds = {"unknown": unknown, "missing (by our names)": missing, "misshapen": misshapen, "not finite": broken}
    return [f"{kind}: {listed(dict.fromkeys(names))}" for kind, names in kinds.items() if names]


def listed(names: Collection[str]) -> str:
    """All names; of very many, the first ten, since a cause shows in these, and is hidden by hundreds."""
    shown = list(names)[: 10 if len(names) >= MANY else None]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(shown) < len(names) else "")


def write(out: Path, detector: Detector, card: dict[str, Any]) -> None:
    """Write the detector, read it again, and keep it only if it says the same to the last bit."""
    before = probe(detector)
    require(before.isfinite().all(), "the weights make numbers that are not finite; the checkpoint is damaged.")
    facts = {"largest difference on a probe, once written and read": 0.0, "probe": before[0, -1, :8].tolist()}

    def check(file: Path) -> None:
        difference = float((probe(load_detector(file)) - before).abs().max())
        assert difference == 0, f"what was written differs by {difference}"

    save_detector(out, detector, {**card, "parity": card["parity"] | facts}, check)


@torch.inference_mode()
def probe(detector: Detector) -> Tensor:
    """Boxes and scores, or scores of all words after a few given ones, for a picture that is a formula."""
    rows, columns = torch.meshgrid(torch.arange(128), torch.arange(160), indexing="ij")
    waves_CHW = torch.stack([torch.sin(0.05 * (c + 1) * rows + 0.07 * columns) for c in range(3)])
    raw = detector((0.5 + 0.5 * waves_CHW)[None], torch.tensor([[128, 160]]))
    if isinstance(detector, Detr | Deformable):
        said = detector.decode(raw)
        return torch.cat([said.boxes_BD4, said.scores_BD[..., None], said.labels_BD[..., None]], -1)
    return detector.decoder(torch.arange(10)[None], getattr(raw, "memory", raw))  # type: ignore[operator]


def _report(out: Path, detector: Detector, found: Foreign, count: int) -> None:
    """What was recognised, and what to do next."""
    say = make_console().print
    parameters = sum(p.numel() for p in detector.parameters())
    say(f"{found.what}: {count} tensors, {parameters:,} parameters, images of {detector.image_size} px")
    kinds = "1 class" if len(detector.names) == 1 else f"{len(detector.names)} classes"
    say(f"{kinds}: {_some(detector.names)}")
    for note in found.notes:
        say(f"not said by the file: {note}")
    if detector.names[0].startswith("class "):
        say("not said by the file: what the classes are called; --classes would tell")
    say("every tensor is equal bit for bit; a probe is finite, and the same once written and read")
    say(f"{out}   next: boxwright predict {out} IMAGE")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) < 8 else f"{', '.join(names[:3])}, ..., {names[-1]}"

"""`boxwright import-weights`: convert a checkpoint of another project, check it, and describe it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from glob import escape
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxwright.checkpoints.detector_file import load_detector, save_detector
from boxwright.config import UserError, require
from boxwright.console import make_console
from boxwright.interop import classes as naming
from boxwright.interop import deformable, detr, hugging_face, pix2seq_shapes, replications
from boxwright.interop.foreign import ForeignCheckpoint
from boxwright.interop.pickles import read_pickle
from boxwright.interop.tensorbundle import find_bundle, index_of, read_bundle
from boxwright.models.sequence.sequence_detector import SequenceDetector
from boxwright.types import Detector

MANY = 40  # names in an error; of so many or more, only the first ten are listed
LARGEST_SIZE = 10_000  # pixels; side of a canvas
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
    require(image_size is None or image_size >= 64, f"--image-size must be at least 64, not {image_size}.")
    require(image_size is None or image_size <= LARGEST_SIZE, f"--image-size {image_size} is more than {LARGEST_SIZE}.")
    out = choose_out(Path(out))
    found, count = read_foreign(source, image_size)
    named = choose_classes(found, classes)
    detector = build(found, named, source)
    card = {
        "imported from": source.name,
        "written by": found.project,
        "guesses": list(found.guesses),
        "parity": {"tensors of the file": count, "tensors equal bit for bit": len(found.state)},
    }
    write(out, detector, card)
    _report(out, detector, found, count)
    return out


def choose_out(out: Path) -> Path:
    """The file to write, with its ending.

    Raises:
        UserError: if it exists already, or can't be created.
    """
    require(out.name not in ("", ".."), "OUT must be the name of a file to write, with or without .safetensors.")
    out = out if out.suffix == ".safetensors" else out.with_name(out.name + ".safetensors")
    require(not out.exists(), f"{out} exists; give another name, or move it away.")
    above = next(folder for folder in out.absolute().parents if folder.exists())
    require(above.is_dir(), f"{out} can't be written: {above} is a file, not a folder; give another place.")
    return out


def read_foreign(source: Path, image_size: int | None = None) -> tuple[ForeignCheckpoint, int]:
    """The network of a checkpoint, with its image size, and the number of its tensors in the file."""
    _check_exists(source)
    prefix, folder = find_bundle(source), hugging_face.find_folder(source)
    if prefix is not None:
        found, tensors, side = _read_tensorflow(prefix)
    elif folder is not None:
        found, tensors, side = _read_hugging_face(folder)
    else:
        found, tensors, side = _read_pytorch(source)
    if found is None:
        known, some = ", ".join(PROJECTS), ", ".join(sorted(tensors)[:3])
        raise UserError(f"{source} is of no project that can be imported ({known}); its tensors are called {some}...")
    require(found.ids, f"{source} looks like {found.project}, but its vocabulary has no words for classes.")
    side = image_size or side or found.config.image_size
    return replace(found, config=replace(found.config, image_size=side)), len(tensors)


def _check_exists(source: Path) -> None:
    """Raise `UserError` unless this is a file, a folder, or a TensorFlow checkpoint without its ending."""
    if not source.exists() and not (source.name and index_of(source).exists()):
        data = next(source.parent.glob(f"{escape(source.name)}.data-*-of-*"), None) if source.name else None
        why = f": {data} has no index beside it, {index_of(source).name}" if data else ""
        raise UserError(f"{source} does not exist{why}.")


class _Read(NamedTuple):
    """What a reader found: the network, if it was recognised; all tensors; and the image size, if files have it."""

    found: ForeignCheckpoint | None
    tensors: Mapping[str, Any]
    side: int | None


def _read_tensorflow(prefix: Path) -> _Read:
    tensors = read_bundle(prefix, pix2seq_shapes.is_of_network)
    settings = pix2seq_shapes.read_settings(prefix.parent)
    sides = settings.get("image_size", OFFICIAL_SIZE)
    return _Read(pix2seq_shapes.convert(tensors, settings), tensors, max(sides) if isinstance(sides, list) else sides)


def _read_hugging_face(folder: Path) -> _Read:
    tensors, options = hugging_face.read_folder(folder)
    check_plain(tensors, folder)
    found = _convert_detr(tensors, options, folder.name)
    if found is not None:
        found = replace(found, classes=hugging_face.class_names(options, len(found.ids)))
    return _Read(found, tensors, hugging_face.longest_side(folder))


def _read_pytorch(source: Path) -> _Read:
    kinds = "a TensorFlow checkpoint has NAME.index, one of Hugging Face's config.json and model.safetensors"
    require(source.is_file(), f"{source} holds no checkpoint that can be imported: {kinds}.")
    tensors, options = read_pickle(source)
    check_plain(tensors, source)
    found = replications.convert(tensors, options.get("nheads")) or _convert_detr(tensors, options, source.name)
    return _Read(found, tensors, None)


def _convert_detr(tensors: Mapping[str, Tensor], options: Mapping[str, Any], name: str) -> ForeignCheckpoint | None:
    return detr.convert(tensors, options, name) or deformable.convert(tensors, options, name)


def check_plain(tensors: Mapping[str, Tensor], source: Path) -> None:
    """Raise `UserError` unless all tensors are dense, real and not empty, so that they can be taken unchanged."""
    odd = [name for name, value in tensors.items() if not _is_plain(value)]
    require(not odd, f"{source} holds tensors that are empty, sparse, complex or quantised: {listed(odd)}.")


def _is_plain(value: Tensor) -> bool:
    dense = value.layout == torch.strided and not value.is_nested and value.device.type == "cpu"
    return dense and not value.is_complex() and not value.is_quantized and value.numel() > 0


def choose_classes(found: ForeignCheckpoint, classes: str | None) -> naming.Classes:
    """The classes that a user gave, else those of the files, else COCO's, else unnamed ones."""
    if classes is not None:
        return naming.parse_classes(classes, found.ids)
    if found.classes is not None:
        return found.classes
    return naming.coco() if found.coco_ids else naming.unnamed(found.ids)


def build(found: ForeignCheckpoint, named: naming.Classes, source: Path) -> Detector:
    """The detector with the weights of the file.

    Raises:
        UserError: for tensors that are unknown, missing, misshapen or not finite, all in one error.
    """
    consecutive = named.ids == tuple(range(found.ids.start, found.ids.start + len(named.names)))
    config = replace(found.config, class_ids=() if consecutive else named.ids)
    try:
        with torch.device("meta"):  # shapes only, since a file that is no network could ask for any amount of memory
            own = found.detector(config, named.names, pretrained=False).state_dict()
    except (AssertionError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise UserError(f"{source} looks like {found.project}, but its shapes make no network ({error}).") from error
    faults = compare(found, {name: value.shape for name, value in own.items()})
    require(not faults, f"{source} looks like {found.project}, but does not fit: {'; '.join(faults)}.")
    detector = found.detector(config, named.names, pretrained=False)
    detector.load_state_dict(dict(found.state))
    kept = detector.state_dict()
    assert all(torch.equal(kept[name], value.to(kept[name].dtype)) for name, value in found.state.items())
    return detector.eval()


def compare(found: ForeignCheckpoint, own: dict[str, torch.Size]) -> list[str]:
    """What is wrong with the tensors of a file, by their names in the file as far as it has them."""

    def source(name: str) -> str:
        return found.sources.get(name, name)

    unknown = [*found.unknown, *(source(name) for name in found.state if name not in own)]
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
    """All names; of very many the first ten, which show the cause better than hundreds."""
    shown = list(names)[: 10 if len(names) >= MANY else None]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(shown) < len(names) else "")


def write(out: Path, detector: Detector, card: dict[str, Any]) -> None:
    """Write the detector, read it again, and keep the file only if its outputs are equal bit for bit."""
    before = probe(detector)
    require(before.isfinite().all(), "the weights make numbers that are not finite; the checkpoint is damaged.")
    facts = {"largest difference on a probe, once written and read": 0.0, "probe": before[0, -1, :8].tolist()}

    def check(file: Path) -> None:
        difference = float((probe(load_detector(file)) - before).abs().max())
        assert difference == 0, f"what was written differs by {difference}"

    save_detector(out, detector, {**card, "parity": card["parity"] | facts}, check)


@torch.inference_mode()
def probe(detector: Detector) -> Tensor:
    """Boxes, scores and classes, or scores of all tokens after given ones, for a synthetic image."""
    rows, columns = torch.meshgrid(torch.arange(128), torch.arange(160), indexing="ij")
    waves_CHW = torch.stack([torch.sin(0.05 * (c + 1) * rows + 0.07 * columns) for c in range(3)])
    outputs = detector((0.5 + 0.5 * waves_CHW)[None], torch.tensor([[128, 160]]))
    if isinstance(detector, SequenceDetector):
        return detector.decoder(torch.arange(10)[None], detector.decoder_memory(outputs))
    found = detector.decode(outputs)
    return torch.cat([found.boxes_BD4, found.scores_BD[..., None], found.labels_BD[..., None]], -1)


def _report(out: Path, detector: Detector, found: ForeignCheckpoint, count: int) -> None:
    """Print what was recognised, and the next command."""
    say = make_console().print
    parameters = sum(p.numel() for p in detector.parameters())
    say(f"{found.project}: {count} tensors, {parameters:,} parameters, images of {detector.image_size} px")
    kinds = "1 class" if len(detector.names) == 1 else f"{len(detector.names)} classes"
    say(f"{kinds}: {_some(detector.names)}")
    for guess in found.guesses:
        say(f"not stored in the file: {guess}")
    if detector.names[0].startswith("class "):
        say("not stored in the file: names of the classes; --classes names them")
    say("every tensor is equal bit for bit; a probe is finite, and the same once written and read")
    say(f"{out}   next: boxwright predict {out} IMAGE")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) < 8 else f"{', '.join(names[:3])}, ..., {names[-1]}"

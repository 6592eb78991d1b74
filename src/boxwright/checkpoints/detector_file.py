"""Weights on disk: one safetensors file whose header holds the shape of the network, its classes and its card.

An adapter is such a file, too: it holds only what is not in its base, and the header says which base that is. A
checkpoint is never code: nothing is unpickled.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from boxwright.checkpoints.locate import ADAPTER, BESIDE, CHECKPOINT, FORMAT, find_weights, how_to_import
from boxwright.checkpoints.lora import Base, backbone_state, checksum, fold, is_adapted, lay_over, own_state
from boxwright.checkpoints.tensors import read_tensors, save_tensors
from boxwright.config import UserError, require
from boxwright.files import write_whole
from boxwright.models import registry
from boxwright.types import Detector


def save_detector(
    path: Path, detector: Detector, card: dict[str, Any], check: Callable[[Path], Any] = lambda file: None
) -> None:
    """Write the detector to `path` (whole or not at all); of an adapted one, only what is not in its base.

    Args:
        path: the file.
        detector: what to write.
        card: any facts about its making that fit into JSON.
        check: called with what was written before it gets its name; it keeps its name from it by an exception.

    Raises:
        UserError: if the file can't be written; what was there before stays.
    """
    base: Base | None = vars(detector).get("adapted_from")
    header = {
        "format": FORMAT if base is None else ADAPTER,
        "model": registry.name_of(detector),
        "config": json.dumps(asdict(detector.config)),  # type: ignore[arg-type]
        "names": json.dumps(detector.names),
        "card": json.dumps(card),
    }
    if base is not None:
        header["base"] = json.dumps(asdict(base.seen_from(path.parent)))
    tensors = detector.state_dict() if base is None else own_state(detector)
    state = {key: value.contiguous() for key, value in tensors.items()}
    header["checksum"] = checksum(state)

    def write(temporary: Path) -> None:
        save_tensors(state, temporary, metadata=header)
        check(temporary)

    write_whole(path, write)


def load_detector(path: Path | str, device: torch.device | str = "cpu", base: Path | str | None = None) -> Detector:
    """The detector stored at `path`, in evaluation mode, with its card in `detector.card`.

    Args:
        path: a ``.safetensors`` file, with or without the ending, or the folder of a run. An adapter is merged into its
            base.
        device: where to put it.
        base: the checkpoint that an adapter was trained on, where it is not at the place that the adapter names.

    Raises:
        UserError: if there is no such file, or it is not ours, or cut short, or a pickle; or an adapter without its
            base.
    """
    return fold(_open(Path(path), torch.device("cpu"), {}, base)).to(device).eval()


def load_together(paths: Mapping[str, Path | str], device: torch.device | str = "cpu") -> dict[str, Detector]:
    """Several detectors, in evaluation mode. Adapters share the tensors of their base, with the base itself, too.

    Args:
        paths: as for `load_detector`, under any names.
        device: where to put them.
    """
    bases: dict[str, dict[str, Tensor]] = {}
    opened: dict[str, Detector] = {}
    for name in sorted(paths, key=lambda name: is_adapter(paths[name])):
        opened[name] = _open(Path(paths[name]), torch.device(device), bases).eval()
        if not is_adapted(opened[name]):
            tensors = opened[name].state_dict()
            bases[checksum(tensors)] = tensors
    return {name: opened[name] for name in paths}


def is_adapter(path: Path | str) -> bool:
    """Whether the file that is meant is an adapter."""
    return read_tensors(find_weights(Path(path)), CHECKPOINT, header_only=True)[0].get("format") == ADAPTER


def read_config(path: Path | str) -> tuple[str, Any]:
    """Name and configuration of the detector stored at `path`, without its weights.

    Raises:
        UserError: as `load_detector`, of what a header can show.
    """
    file = find_weights(Path(path))
    header, _ = _read(file, header_only=True)
    with _fitting(file):
        return header["model"], registry.configure(header["model"], json.loads(header["config"]))


def _open(
    path: Path, device: torch.device, bases: dict[str, dict[str, Tensor]], base: Path | str | None = None
) -> Detector:
    """A detector on the device; that of an adapter has A and B beside its layers. `bases` are those that are read
    already, by checksum; the one that an adapter needs is added.
    """
    file = find_weights(path)
    header, state = _read(file)
    with _fitting(file):
        names, config, card = (json.loads(header[key]) for key in ("names", "config", "card"))
        detector = registry.rebuild(header["model"], config, tuple(names))
        if header["format"] == ADAPTER:
            wanted = Base(**json.loads(header["base"]))
            if wanted.checksum not in bases:
                found = _find_base(file, header, wanted, base)
                bases[wanted.checksum] = {key: value.to(device) for key, value in found.items()}
            own = {key: value.to(device) for key, value in state.items()}
            lay_over(wanted, bases[wanted.checksum], own, detector.to(device))
        else:
            require(base is None, f"{file} is no adapter and has no base.")
            detector.load_state_dict(state)
    detector.card = card  # type: ignore[assignment]
    return detector.to(device)


@contextmanager
def _fitting(file: Path) -> Iterator[None]:
    """What a header that is not as we write it leads to becomes a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(f"{file} does not fit the detector it names, or is damaged ({reason}).") from error


def _read(file: Path, header_only: bool = False) -> tuple[dict[str, str], dict[str, Tensor]]:
    header, state = read_tensors(file, CHECKPOINT, header_only)
    if header.get("format") not in (FORMAT, ADAPTER):
        mend = f"give one that `train` wrote; {how_to_import(file)}"
        raise UserError(f"{file} is a safetensors file, but not a boxwright checkpoint; {mend}")
    if header_only:
        return header, state
    stored = header.get("checksum", "")
    require(stored in ("", checksum(state)), f"{file} is damaged: its tensors have another checksum than its header.")
    bad = next((key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()), None)
    mend = "fetch it again, or if its training diverged, train with a lower --optim.lr"
    require(bad is None, f"{file} holds numbers that are none (NaN, or infinite), first in {bad}; {mend}.")
    return header, state


def _find_base(file: Path, header: dict[str, str], wanted: Base, given: Path | str | None) -> dict[str, Tensor]:
    """The tensors that an adapter was trained on, wherever they are, known by their checksum."""
    if not wanted.path:
        require(given is None, f"the base of {file} is timm's {wanted.name}, which need not be given.")
        names, config = json.loads(header["names"]), json.loads(header["config"])
        found = backbone_state(registry.rebuild(header["model"], config, tuple(names), pretrained=True))
        other = f"{file} adapts other weights of {wanted.name} than timm has here"
        require(checksum(found) == wanted.checksum, f"{other}; install the version of timm that it was trained with.")
        return found
    places = wanted.places(file) if given is None else [find_weights(Path(given))]
    there = [place for place in places if place.is_file()]
    for place in there:
        found = {key: value.float() if value.is_floating_point() else value for key, value in _read(place)[1].items()}
        if checksum(found) == wanted.checksum:  # of the tensors as they are loaded; a file may hold half precision
            return found
    said = f"{file} adapts {wanted.name} (checksum {wanted.checksum[:12]})"
    but = f"{there[0]} is another checkpoint" if there else f"{places[0]} is not there"
    mend = f"lay that one beside the adapter as {BESIDE}, or give it: boxwright.load(adapter, base=...)"
    raise UserError(f"{said}, but {but}; {mend}.")


def merge(adapter: Path | str, out: Path | str, base: Path | str | None = None) -> Path:
    """Write an ordinary checkpoint that finds what the adapter finds, and needs no base.

    Args:
        adapter: its file, or the folder of its run.
        out: the new file.
        base: as for `load_detector`.

    Raises:
        UserError: if `out` is there already; and all of `load_detector`.
    """
    out = Path(out)
    require(not out.exists(), f"{out} is there already; give another name.")
    detector = load_detector(adapter, base=base)
    save_detector(out, detector, detector.card)  # type: ignore[arg-type]
    return out

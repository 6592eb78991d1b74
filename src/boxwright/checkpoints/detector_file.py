"""Detectors on disk: one safetensors file, whose header holds the configuration, the classes and the card.

An adapter is such a file, too: it holds only the tensors that are not in its base, and its header names the base. A
checkpoint can't run code: nothing is unpickled.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from boxwright.checkpoints.locate import ADAPTER, BASE_FILE, CHECKPOINT, FORMAT, as_path, find_weights, how_to_import
from boxwright.checkpoints.lora import (
    Base,
    backbone_state,
    checksum,
    is_adapted,
    load_adapter,
    merge_adapter,
    own_state,
)
from boxwright.checkpoints.size_limit import parameter_limit
from boxwright.checkpoints.tensors import CHECKSUM, read_tensors, save_tensors
from boxwright.classes import check_names
from boxwright.config import UserError, require
from boxwright.device import one_thread_after_fork, usual_torch
from boxwright.files import write_whole
from boxwright.models import registry
from boxwright.types import Detector

BUILT, ADAPTED = 10, 10_000  # how many times the numbers of a file its network may have while it is built
SPARE = 50_000_000  # and how many more: heads that timm makes and drops


def save_detector(
    path: Path, detector: Detector, card: dict[str, Any], check: Callable[[Path], Any] = lambda file: None
) -> None:
    """Write the detector to `path`, whole or not at all; of an adapted one, only the tensors that are not in its base.

    Args:
        path: the file.
        detector: what to write.
        card: any facts about how it was made that fit into JSON.
        check: called with the temporary file that was written; if it raises, there will be no file at `path`.

    Raises:
        UserError: if the file can't be written, when one that was there before stays; or for names of classes with
            control characters.
    """
    check_names(detector.names)
    base: Base | None = vars(detector).get("adapted_from")
    header = {
        "format": FORMAT if base is None else ADAPTER,
        "model": registry.name_of(detector),
        "config": json.dumps(asdict(detector.config)),
        "names": json.dumps(detector.names),
        "card": json.dumps(card),
    }
    if base is not None:
        header["base"] = json.dumps(asdict(base.relative_to(path.parent)))
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
        base: the checkpoint that an adapter was trained on, if it is not where the adapter names it.

    Raises:
        UserError: if there is no such file, or it is not boxwright's, damaged, or a pickle; or the base of an adapter
            is missing.
    """
    return merge_adapter(_open(as_path(path), torch.device("cpu"), {}, base)).to(device).eval()


def load_together(paths: Mapping[str, Path | str], device: torch.device | str = "cpu") -> dict[str, Detector]:
    """Several detectors, in evaluation mode; adapters share memory with each other and with their base.

    Args:
        paths: as for `load_detector`, under any keys.
        device: where to put them.
    """
    bases: dict[str, dict[str, Tensor]] = {}
    opened: dict[str, Detector] = {}
    for name in sorted(paths, key=lambda name: is_adapter(paths[name])):
        opened[name] = _open(as_path(paths[name]), torch.device(device), bases).eval()
        if not is_adapted(opened[name]):
            tensors = opened[name].state_dict()
            bases[checksum(tensors)] = tensors
    return {name: opened[name] for name in paths}


def is_adapter(path: Path | str) -> bool:
    """Whether the file that `path` means is an adapter."""
    return read_tensors(find_weights(as_path(path)), CHECKPOINT, header_only=True)[0].get("format") == ADAPTER


def read_config(path: Path | str) -> tuple[str, Any]:
    """Name and configuration of the detector stored at `path`, without its weights.

    Raises:
        UserError: see `load_detector`; the tensors are not checked.
    """
    file = find_weights(as_path(path))
    header, _ = _read(file, header_only=True)
    with _header_errors(file):
        return header["model"], registry.configure(header["model"], json.loads(header["config"]))


@usual_torch()
def _open(
    path: Path, device: torch.device, bases: dict[str, dict[str, Tensor]], base: Path | str | None = None
) -> Detector:
    """The detector on the device; of an adapter, with A and B as modules of their own.

    Args:
        path: see `load_detector`.
        device: where to put it.
        bases: tensors of the bases read so far, by checksum; the one that an adapter needs is added.
        base: see `load_detector`.
    """
    one_thread_after_fork()
    file = find_weights(path)
    header, state = _read(file)
    with _header_errors(file):
        names, config, card = (json.loads(header[key]) for key in ("names", "config", "card"))
        check_names(tuple(names), f"{file}: ")
        size = sum(value.numel() for value in state.values())
        with parameter_limit(SPARE + (ADAPTED if header["format"] == ADAPTER else BUILT) * size):
            detector = registry.rebuild(header["model"], config, tuple(names))
        if header["format"] == ADAPTER:
            wanted = Base(**json.loads(header["base"]))
            if wanted.checksum not in bases:
                found = _find_base(file, header, wanted, base)
                bases[wanted.checksum] = {key: value.to(device) for key, value in found.items()}
            own = {key: value.to(device) for key, value in state.items()}
            load_adapter(detector.to(device), wanted, bases[wanted.checksum], own)
        else:
            require(base is None, f"{file} is no adapter and has no base.")
            detector.load_state_dict(state)
    detector.card = card
    return detector.to(device)


@contextmanager
def _header_errors(file: Path) -> Iterator[None]:
    """Raise the errors that a damaged or foreign header leads to as `UserError`."""
    try:
        yield
    except UserError:
        raise
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError, ArithmeticError, AssertionError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(f"{file} does not fit the detector it names, or is damaged ({reason}).") from error


def _read(file: Path, header_only: bool = False) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header and tensors of a boxwright checkpoint; the tensors are checked against checksum, NaN and infinity."""
    header, state = read_tensors(file, CHECKPOINT, header_only)
    if header.get("format") not in (FORMAT, ADAPTER):
        fix = f"give one that `train` wrote; {how_to_import(file)}"
        raise UserError(f"{file} is a safetensors file, but not a boxwright checkpoint; {fix}")
    if header_only:
        return header, state
    known = CHECKSUM in header or header.get("checksum", "") in ("", checksum(state))  # the first is checked already
    require(known, f"{file} is damaged: its tensors have another checksum than its header.")
    bad = next((key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()), None)
    fix = "fetch it again, or if its training diverged, train with a lower --optim.lr"
    require(bad is None, f"{file} holds numbers that are none (NaN, or infinite), first in {bad}; {fix}.")
    return header, state


def _find_base(file: Path, header: dict[str, str], wanted: Base, given: Path | str | None) -> dict[str, Tensor]:
    """The tensors of the base that an adapter was trained on, found by their checksum."""
    if not wanted.path:
        require(given is None, f"the base of {file} is timm's {wanted.name}, which need not be given.")
        return _timm_base(file, header, wanted)
    paths = wanted.candidates(file) if given is None else [find_weights(Path(given))]
    files = [path for path in paths if path.is_file()]
    for candidate in files:
        state = _read(candidate)[1]
        state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
        if checksum(state) == wanted.checksum:  # of the tensors as they are loaded; a file may hold half precision
            return state
    what = f"{file} adapts {wanted.name} (checksum {wanted.checksum[:12]})"
    but = f"{files[0]} is another checkpoint" if files else f"{paths[0]} is not there"
    fix = f"put that one beside the adapter as {BASE_FILE}, or give it: boxwright.load(adapter, base=...)"
    raise UserError(f"{what}, but {but}; {fix}.")


def _timm_base(file: Path, header: dict[str, str], wanted: Base) -> dict[str, Tensor]:
    """The pretrained tensors of timm that an adapter was trained on."""
    names, config = json.loads(header["names"]), json.loads(header["config"])
    state = backbone_state(registry.rebuild(header["model"], config, tuple(names), pretrained=True))
    other = f"{file} adapts other weights of {wanted.name} than timm has here"
    require(checksum(state) == wanted.checksum, f"{other}; install the version of timm that it was trained with.")
    return state


def merge(adapter: Path | str, out: Path | str, base: Path | str | None = None) -> Path:
    """Write an ordinary checkpoint that predicts what the adapter predicts, and needs no base.

    Args:
        adapter: its file, or the folder of its run.
        out: the new file.
        base: see `load_detector`.

    Raises:
        UserError: if `out` exists already; else see `load_detector`.
    """
    out = Path(out)
    require(not out.exists(), f"{out} is there already; give another name.")
    detector = load_detector(adapter, base=base)
    save_detector(out, detector, detector.card)
    return out

"""Which weights file a path means. Nothing here needs torch."""

import os
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import Any

from boxwright.checkpoints import hub
from boxwright.checkpoints.header import read_header
from boxwright.config import UserError, nearest, require

FORMAT = "boxwright-1"
ADAPTER = "boxwright-adapter-1"
CHECKPOINT = "a boxwright checkpoint"
BASE_FILE = "base.safetensors"  # the name under which a base is looked for in the folder of its adapter
_PACKAGE = Path(__file__).parent.parent / "bundled"
BUNDLED = {"demo": _PACKAGE / "dense-nano-bccd.safetensors"}  # the detectors that come with the package, by name
OTHER_PROJECTS = ("*.index", "*.data-*-of-*", "model.safetensors", "pytorch_model.bin", "*.pth", "*.pt", "*.bin")


def as_path(weights: Any) -> Path:
    """The path of a checkpoint; `UserError` for anything else, as a predictor that was loaded."""
    is_path = isinstance(weights, str | os.PathLike)
    fix = "give the file, or the folder of the run, that it was loaded from"
    require(is_path, f"weights are a path, not a {type(weights).__name__}; {fix}.")
    return Path(weights)


def find_weights(path: Path) -> Path:
    """The checkpoint that a path means.

    Args:
        path: ``runs/x``, ``runs/x/best`` or ``runs/x/best.safetensors``, a name in `BUNDLED`, or that of a hub
            repository, ``owner/name`` or ``hf://owner/name@revision``, which is downloaded if need be.

    Raises:
        UserError: if there is none, or only an exported file.
    """
    if is_bundled(path):
        return BUNDLED[str(path)]
    repository = hub.repository(path)
    path = path if repository is None else hub.fetch(*repository)
    found = _weights_at(path)
    if found is None:
        raise UserError(_no_weights_at(path))
    wanted = "`predict` and `serve` take it; this wants a checkpoint, as the one that it was exported from"
    require(not is_exported(found), f"{found} is an exported file: {wanted}.")
    return found


def is_bundled(path: Path) -> bool:
    """Whether a detector is meant that comes with the package: there is none else of this name."""
    return str(path) in BUNDLED and _weights_at(path) is None and exported_at(path) is None


def exported_bundled(name: str) -> Path:
    """The exported file of a detector in `BUNDLED`, which needs no torch."""
    return BUNDLED[name].with_suffix(".onnx")


def is_own(weights: Path | str) -> bool:
    """Whether weights are a user's own: results may be written beside them. Others are the hub's or the package's."""
    path = as_path(weights)
    return not is_bundled(path) and hub.repository(path) is None


def results_folder(weights: Path | str) -> Path:
    """Where results about a checkpoint go by default: its folder, or the current one if it is not the user's own."""
    return find_weights(as_path(weights)).parent if is_own(weights) else Path()


def _weights_at(path: Path) -> Path | None:
    """The file that a local path means, with or without its ending, or best or last of the folder of a run; or None.

    It is not opened: it may also be an exported file, or of another project.
    """
    named = [path.with_name(path.name + ".safetensors")] if path.name else []
    options = [path, *named, path / "best.safetensors", path / "last.safetensors"]
    return next((option for option in options if option.is_file()), None) or _only_one(path)


def _no_weights_at(path: Path) -> str:
    """The error message where there are none: import the checkpoint of another project, or use the exported file."""
    fix = (
        f"give a .safetensors file, the folder of a training run or {' or '.join(BUNDLED)}{nearest(path.name, BUNDLED)}"
    )
    if other := _other_project_at(path):
        return f"no weights at {path}; {fix}; {how_to_import(other)}"
    onnx = exported_at(path)
    more = f"; {onnx} is an exported file, which `predict` and `serve` take" if onnx else ""
    return f"no weights at {path}; {fix}{more}."


def _other_project_at(path: Path) -> Path | None:
    """The folder or file of another project's checkpoint that a path means, with or without its ending."""
    if any(any(path.glob(pattern)) for pattern in OTHER_PROJECTS):
        return path
    files = sorted(path.parent.glob(f"{escape(path.name)}.*")) if path.name else []
    return next((file for file in files if any(file.match(pattern) for pattern in OTHER_PROJECTS)), None)


def _only_one(folder: Path) -> Path | None:
    """The only boxwright file in a folder, whatever its name: hub repositories have any."""
    files = [file for file in sorted(folder.glob("*.safetensors")) if file.name != BASE_FILE]
    ours = [file for file in files if _is_ours(file)]
    return ours[0] if len(ours) == 1 else None


def _is_ours(file: Path) -> bool:
    with suppress(UserError):
        return read_header(file).get("format") in (FORMAT, ADAPTER)
    return False


def how_to_import(source: Path) -> str:
    """The sentence of an error message on a checkpoint of another project."""
    return f"`boxwright import-weights {source} OUT` converts checkpoints of other projects."


def is_exported(path: Path) -> bool:
    """Whether `path` is an exported file, by its ending or its content."""
    return path.suffix.lower() == ".onnx" or (path.is_file() and exported_at(path) is not None)


def exported_at(path: Path) -> Path | None:
    """The ONNX file that a path means: its name with or without the ending, or its folder; None if there is none.

    A file of another name is recognised by its first bytes: ONNX has a version where safetensors has a length.
    """
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(9)
        onnx = len(start) == 9 and start[0] == 8 and 3 <= start[1] < 32 and start[8:] != b"{"
        return path if onnx or path.suffix.lower() == ".onnx" else None
    named = [path.with_name(f"{path.name}.onnx")] if path.name else []
    return next((file for file in [*named, *sorted(path.glob("*.onnx"))] if file.is_file()), None)

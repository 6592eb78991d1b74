"""Which file of weights a path means. Nothing here needs torch."""

from contextlib import suppress
from glob import escape
from pathlib import Path

from boxwright.checkpoints import hub
from boxwright.checkpoints.header import read_header
from boxwright.config import UserError, require

FORMAT = "boxwright-1"
ADAPTER = "boxwright-adapter-1"
CHECKPOINT = "a boxwright checkpoint"
BESIDE = "base.safetensors"  # looked for beside an adapter
OTHERS = ("*.index", "*.data-*-of-*", "model.safetensors", "pytorch_model.bin", "*.pth", "*.pt", "*.bin")


def find_weights(path: Path) -> Path:
    """The checkpoint that a path means.

    Args:
        path: as in ``runs/x``, ``runs/x/best`` or ``runs/x/best.safetensors``, or the name of a hub repository,
            ``owner/name`` or ``hf://owner/name@revision``, which is fetched.

    Raises:
        UserError: if there is none, or only an exported file.
    """
    repository = hub.repository(path)
    path = path if repository is None else hub.fetch(*repository)
    found = _weights_at(path)
    if found is None:
        raise _no_weights_at(path)
    wanted = "`predict` and `serve` take it; this wants a checkpoint, as the one that it was exported from"
    require(not is_exported(found), f"{found} is an exported file: {wanted}.")
    return found


def results_folder(weights: Path | str) -> Path:
    """Where results about a checkpoint go by default: its folder, or the current one if it comes from the hub."""
    return find_weights(Path(weights)).parent if hub.repository(weights) is None else Path()


def _weights_at(path: Path) -> Path | None:
    """The file that `path` means here, with or without its ending, or in the folder of a run; None if there is none.

    It may be an exported file, or of another project.
    """
    named = [path.with_name(path.name + ".safetensors")] if path.name else []
    options = [path, *named, path / "best.safetensors", path / "last.safetensors"]
    return next((option for option in options if option.is_file()), None) or _only_one(path)


def _no_weights_at(path: Path) -> UserError:
    """What to do instead: import the checkpoint of another project, or use the exported file."""
    beside = sorted(path.parent.glob(f"{escape(path.name)}.*")) if path.name else []
    others = [path] if any(any(path.glob(pattern)) for pattern in OTHERS) else beside
    other = next((one for one in others if one == path or any(one.match(pattern) for pattern in OTHERS)), None)
    fix = "give a .safetensors file or the folder of a training run"
    onnx = exported_at(path)
    more = f"; {onnx} is an exported file, which `predict` and `serve` take." if onnx else "."
    return UserError(f"no weights at {path}; {fix}{'; ' + how_to_import(other) if other else more}")


def _only_one(folder: Path) -> Path | None:
    """The one file of ours in a folder that was fetched from a hub, where any name will do."""
    files = [file for file in sorted(folder.glob("*.safetensors")) if file.name != BESIDE]
    ours = [file for file in files if _is_ours(file)]
    return ours[0] if len(ours) == 1 else None


def _is_ours(file: Path) -> bool:
    with suppress(UserError):
        return read_header(file).get("format") in (FORMAT, ADAPTER)
    return False


def how_to_import(source: Path) -> str:
    """What to do with a checkpoint of another project."""
    return f"`boxwright import-weights {source} OUT` converts checkpoints of other projects."


def is_exported(path: Path) -> bool:
    """Whether `path` is an exported file, by its ending or its content."""
    return path.suffix.lower() == ".onnx" or (path.is_file() and exported_at(path) is not None)


def exported_at(path: Path) -> Path | None:
    """The ONNX file that is meant by its name, with or without the ending, or by its folder; None where there is none.

    Whatever its name, such a file begins with a version, where safetensors have a length.
    """
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(9)
        onnx = len(start) == 9 and start[0] == 8 and 3 <= start[1] < 32 and start[8:] != b"{"
        return path if onnx or path.suffix.lower() == ".onnx" else None
    beside = [path.with_name(f"{path.name}.onnx")] if path.name else []
    return next((file for file in [*beside, *sorted(path.glob("*.onnx"))] if file.is_file()), None)

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
    """The file meant by ``runs/x``, ``runs/x/best`` or ``runs/x/best.safetensors``, or by the name of a hub repository,
    ``owner/name`` or ``hf://owner/name@revision``.
    """
    repository = hub.repository(path)
    path = path if repository is None else hub.fetch(*repository)
    found = weights_at(path)
    if found is None:
        beside = sorted(path.parent.glob(f"{escape(path.name)}.*")) if path.name else []
        others = [path] if any(any(path.glob(pattern)) for pattern in OTHERS) else beside
        other = next((one for one in others if one == path or any(one.match(pattern) for pattern in OTHERS)), None)
        mend = "give a .safetensors file or the folder of a training run"
        onnx = exported_at(path)
        more = f"; {onnx} is an exported file, which `predict` and `serve` take." if onnx else "."
        raise UserError(f"no weights at {path}; {mend}{'; ' + how_to_import(other) if other else more}")
    wanted = "`predict` and `serve` take it; this wants a checkpoint, as the one that it was exported from"
    require(exported_at(found) is None, f"{found} is an exported file: {wanted}.")
    return found


def weights_at(path: Path) -> Path | None:
    """The file of weights that `path` means here, with or without its ending, or in the folder of a run; None if none.

    It may be an exported file, or of another project.
    """
    named = [path.with_name(path.name + ".safetensors")] if path.name else []
    options = [path, *named, path / "best.safetensors", path / "last.safetensors"]
    return next((option for option in options if option.is_file()), None) or _only_one(path)


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

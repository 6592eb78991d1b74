"""The files of an earlier version, unpacked, and what they are compared with."""

import json
import lzma
import shutil
from pathlib import Path

FILES = Path(__file__).parents[1] / "frozen" / "files"
EXPECTED = json.loads((FILES / "numbers.json").read_text())
LAST_BITS = {"rtol": 2e-4, "atol": 2e-5}  # sums in another order, on another processor


def unpack(name: str, to: Path) -> Path:
    """One file, under its own name in the folder `to` or at the path `to`."""
    target = to / Path(name).name if to.is_dir() else to
    target.write_bytes(lzma.decompress((FILES / f"{name}.xz").read_bytes()))
    return target


def unpack_folder(name: str, to: Path) -> Path:
    """A whole folder, as it was."""
    shutil.copytree(FILES / name, to)
    for packed in to.rglob("*.xz"):
        packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
        packed.unlink()
    return to

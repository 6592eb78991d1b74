"""The command `doctor`: versions, parts, devices, cache and disk, and how to mend what is wrong."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement
from rich.filesize import decimal

from boxwright import __version__
from boxwright.console import make_console
from boxwright.files import default_folder
from boxwright.installation.cache import free_space, stored

_LITTLE = 2 * 10**9  # bytes of free disk
_SHOWN = ("torch", "torchvision", "timm", "onnxruntime", "numpy", "pillow")


@dataclass
class Diagnosis:
    """What `doctor` found.

    Attributes:
        facts: lines about this installation.
        faults: lines about what is wrong, each with its mend.
    """

    facts: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """1 if something is wrong."""
        return int(bool(self.faults))


def doctor() -> Diagnosis:
    """Show versions, installed parts, devices, the cache and the free disk, and how to mend what is wrong.

    Nothing is sent anywhere: put the text into a bug report.

    Returns:
        The lines; their exit_code is 1 if something is wrong.
    """
    found = Diagnosis()
    for examine in (_versions, _parts, _devices, _disk):
        examine(found)
    console = make_console()
    for line in found.facts:
        console.print(line)
    for line in found.faults:
        console.print(f"wrong: {line}", style="yellow")
    console.print("Nothing is wrong." if not found.faults else "")
    return found


def _versions(found: Diagnosis) -> None:
    found.facts.append(f"boxwright {__version__}, Python {platform.python_version()}, {platform.platform()}")
    found.facts.append(f"at {Path(__file__).parents[1]}, run by {sys.executable}")
    versions = [f"{name} {version}" for name in _SHOWN if (version := _version(name))]
    found.facts.append(", ".join(versions))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _parts(found: Diagnosis) -> None:
    """Which optional parts are there, and which package of them has a version that does not fit."""
    try:
        texts = importlib.metadata.requires("boxwright") or []
    except importlib.metadata.PackageNotFoundError:
        found.facts.append("run from its source, not installed: what it requires is not checked")
        return
    for part, needed in _requirements(texts).items():
        missing = [one.name for one in needed if _version(one.name) is None]
        for one in needed:
            version = _version(one.name)
            if version and not one.specifier.contains(version, prereleases=True):
                fix = f"python -m pip install '{one.name}{one.specifier}'"
                found.faults.append(f"{one.name} is {version}, and {one.specifier} is needed: {fix}")
        if part and not missing:
            found.facts.append(f"part {part}: installed")
        elif part:
            few = missing if len(missing) < 4 else [*missing[:3], "..."]
            how = f'python -m pip install "boxwright[{part}]"'
            found.facts.append(f"part {part}: not installed ({', '.join(few)}); {how} brings it")
        elif missing:
            found.faults.append(f"{', '.join(missing)} not installed: python -m pip install {' '.join(missing)}")


def _requirements(texts: list[str]) -> dict[str, list[Requirement]]:
    """What each part needs; the base is the part of no name."""
    parts: dict[str, list[Requirement]] = {"": []}
    for text in texts:
        part = re.search(r"""extra\s*==\s*["'](\w+)["']""", text)
        requirement = Requirement(text)
        if requirement.name != "boxwright":
            parts.setdefault(part[1] if part else "", []).append(requirement)
    parts.pop("dev", None)
    return parts


def _devices(found: Diagnosis) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = os.environ.get("OMP_NUM_THREADS")
    found.facts.append(f"{cores} CPU cores{f', OMP_NUM_THREADS={threads}' if threads else ''}")
    if find_spec("torch") is None:
        return
    import torch

    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(number)
            found.facts.append(f"GPU {number}: {about.name}, {decimal(about.total_memory)}")
    elif torch.backends.mps.is_available():
        found.facts.append("GPU: Apple's, by mps")
    elif shutil.which("nvidia-smi"):
        build = torch.version.cuda or "no CUDA"
        fix = "install a driver for it, or the torch that fits your driver (pytorch.org/get-started)"
        found.faults.append(f"there is an NVIDIA driver, but torch ({build}) sees no GPU: {fix}")
    else:
        found.facts.append("no GPU")


def _disk(found: Diagnosis) -> None:
    home = default_folder()
    size = decimal(sum(part.size for part in stored(home)))
    found.facts.append(f"cache: {size} in {home}, {free_space(home)} free; `boxwright cache` lists it")
    there = next(path for path in (home, *home.absolute().parents) if path.exists())
    if not os.access(there, os.W_OK):
        found.faults.append(f"{there} cannot be written: set BOXWRIGHT_CACHE to a folder that can")
    if shutil.disk_usage(there).free < _LITTLE:
        fix = "`boxwright cache --clear` removes the cache, or set BOXWRIGHT_CACHE to another disk"
        found.faults.append(f"under {decimal(_LITTLE)} are free for the cache: {fix}")

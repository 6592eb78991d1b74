"""Lightning Fabric: on which devices and in which precision a run computes."""

import ctypes
import os
import platform
import sys
import warnings
from typing import Literal

import torch

from boxwright.config import require
from boxwright.device import choose_device

_formatwarning = warnings.formatwarning
from lightning_fabric import Fabric  # noqa: E402

warnings.formatwarning = _formatwarning  # lightning_fabric replaces it for the whole process

Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]


def keep_memory() -> None:
    """Let glibc keep freed memory for the next step instead of returning it, which costs page faults; it stays set.

    Worth a fifth more images per second on a CPU (`benchmarks/training_step.py`); elsewhere nothing happens.
    """
    if platform.libc_ver()[0] == "glibc":
        mmap_threshold, trim_threshold, most = -3, -1, 2**31 - 1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, most)


def make_fabric(device: str, precision: str, devices: int, nodes: int) -> tuple[Fabric, str]:
    """A launched Fabric, and one line that says what was chosen and why."""
    kind, why = choose_device(device)
    if kind == "cpu":
        keep_memory()
    if precision == "auto":
        half = kind == "cuda" and torch.cuda.is_bf16_supported()
        precision = "bf16-mixed" if half else "32-true"
        why += "; bf16 mixed precision, which this GPU computes natively" if half else "; full precision"
    available = {"cuda": torch.cuda.device_count(), "mps": 1}.get(kind, devices)
    require(devices <= available, f"--devices {devices}: torch sees {available} of {kind} here.")
    devices = int(os.environ.get("LOCAL_WORLD_SIZE", devices))
    strategy = "ddp" if devices * nodes > 1 else "auto"
    fabric = Fabric(accelerator=kind, devices=devices, num_nodes=nodes, precision=precision, strategy=strategy)  # type: ignore[arg-type]
    excepthook = sys.excepthook
    fabric.launch()
    sys.excepthook = excepthook  # torch.distributed replaces it, to name the rank in tracebacks
    return fabric, f"{kind} x {devices * nodes} ({why})"

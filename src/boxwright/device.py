"""Which accelerator to use, what it is called, and torch as the rest of the library takes it for granted."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache

import torch

from boxwright.config import require


def choose_device(device: str | torch.device) -> tuple[str, str]:
    """The accelerator to use and the reason: ``auto`` takes a GPU where there is one.

    Args:
        device: auto, cpu, cuda or mps, or such a device of torch, which has no number, or 0.

    Raises:
        UserError: for a device that torch does not know or does not see here.
    """
    device = device.type if isinstance(device, torch.device) and not device.index else str(device)
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        kind = next(name for name, there in available.items() if there)
        return kind, "found" if kind != "cpu" else "no GPU found"
    which = "; CUDA_VISIBLE_DEVICES chooses among several GPUs" if ":" in device else ""
    require(device in available, f"--device is auto, cpu, cuda or mps, not {device!r}{which}.")
    require(available[device], f"--device {device}: torch {torch.__version__} sees none here; use --device auto.")
    return device, "as asked"


def device_name(device: str) -> str:
    """What computes: ``2 CPU cores``, or the name of the GPU.

    Args:
        device: cpu, cuda or mps.
    """
    if device == "cuda":
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"{threads} CPU {'core' if threads == 1 else 'cores'}" if device == "cpu" else device


@contextmanager
def usual_torch() -> Iterator[None]:
    """Gradients, fp32 and the CPU by default, whatever the program around has chosen; afterwards as it was."""
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    torch.set_default_dtype(torch.float32)
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.device("cpu") if device.type != "cpu" else nullcontext(),
        ):
            yield
    finally:
        torch.set_default_dtype(dtype)


@cache
def one_thread_after_fork() -> None:
    """Let processes that are forked from this one use one thread: OpenMP would wait for others, which they lack."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))

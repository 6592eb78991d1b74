"""Which accelerator to use, and what it is called."""

import torch

from boxwright.config import require


def choose_device(device: str) -> tuple[str, str]:
    """The accelerator to use and the reason: ``auto`` takes a GPU where there is one.

    Raises:
        UserError: for a device that torch does not know or does not see here.
    """
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

"""Which accelerator to use."""

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

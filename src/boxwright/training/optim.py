"""The optimizer: parameter groups, the learning rate over the run, and the moving average of the weights."""

import math
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from boxwright.checkpoints.lora import is_a_or_b
from boxwright.config import Optim, Rule, require
from boxwright.types import Detector

TABLES = ("embedding", "pos_embed", "_token")  # the last two as in timm
FLOOR = 0.01  # learning rate at the end of the run, as a fraction of the peak
RANGES = {
    "lr": (0, math.inf), "backbone_factor": (0, math.inf), "frozen": (0, 1), "weight_decay": (0, math.inf),
    "beta2": (0, 0.999999),
    "warmup": (0, 1), "hold": (0, 1), "clip": (0, math.inf), "accumulate": (1, math.inf), "ema": (0, 1),
    "patience": (0, math.inf),
}  # fmt: skip


def check(settings: Optim) -> None:
    """Raise `UserError` for settings outside their range; none may be open."""
    for name, (low, high) in RANGES.items():
        value = getattr(settings, name)
        range_of = f"at least {low}" if high == math.inf else f"between {low} and {high}"
        require(low <= value <= high, f"--optim.{name} must be {range_of}, not {value}.")
    for name, known in {"rule": get_args(Rule), "schedule": ("cosine", "linear")}.items():
        value = getattr(settings, name)
        require(value in known, f"--optim.{name} must be one of {', '.join(known)}, not {value}.")


def make_optimizer(detector: Detector, settings: Optim) -> torch.optim.AdamW:
    """AdamW over up to four groups: backbone or not, decayed or not. Adapters never learn at the backbone's rate.

    Kernels and matrices decay; biases, norms and tables (parameters of one dimension, or named as in `TABLES`) do so
    only with the rule `keras`. The ``peak`` of a group is its highest learning rate, which `set_rate` scales.
    """
    assert settings.lr is not None
    assert settings.backbone_factor is not None
    backbone = {id(p) for p in detector.backbone_parameters()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            decays = settings.rule == "keras" or (parameter.ndim > 1 and not any(word in name for word in TABLES))
            in_backbone = id(parameter) in backbone and not is_a_or_b(name)
            groups.setdefault((in_backbone, decays), []).append(parameter)
    options = [
        {
            "params": parameters,
            "peak": settings.lr * (settings.backbone_factor if in_backbone else 1),
            "weight_decay": settings.weight_decay if decays else 0.0,
        }
        for (in_backbone, decays), parameters in groups.items()
    ]
    optimizer = KerasAdamW if settings.rule in ("keras", "keras-kernels") else torch.optim.AdamW
    betas = (0.9, 0.999 if settings.beta2 is None else settings.beta2)
    fused = all(p.device.type == "cpu" for p in detector.parameters())  # a quarter of the time; fp16 forbids it on GPUs
    return optimizer(options, lr=settings.lr, betas=betas, fused=fused or None)


class KerasAdamW(torch.optim.AdamW):
    """AdamW with epsilon as in Keras, added before the bias of the second moment is corrected."""

    def step(self, closure: Any = None) -> Any:
        """One update; all weights must have had the same number of them."""
        done = max((int(state["step"]) for state in self.state.values()), default=0)
        for group in self.param_groups:
            group["eps"] = self.defaults["eps"] / math.sqrt(1 - group["betas"][1] ** (done + 1))
        return super().step(closure)


def rate_factor(step: int, total: int, settings: Optim) -> float:
    """The learning rate at a step (from 0), as a fraction of the peak: warm-up, constant, descent.

    `linear` is the schedule of the official Pix2Seq (models/model_utils.py there), which counts only the steps before
    this one.
    """
    assert settings.warmup is not None
    assert settings.hold is not None
    linear = settings.schedule == "linear"
    done = (step if linear else step + 1) / total
    if done < settings.warmup:
        return done / settings.warmup
    start = max(settings.warmup, settings.hold)
    if done <= start or start >= 1:
        return 1.0
    progress = (done - start) / (1 - start)
    if linear:
        return 1 - (1 - FLOOR) * progress
    return FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * progress)) / 2


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give every group its peak rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def moving_average(detector: Detector, decay: float) -> AveragedModel:
    """An exponential moving average of the weights; its `module` is another detector.

    After n updates the decay is min(decay, (1 + n) / (10 + n)), so that even in a short run the random initial weights
    hardly count. Frozen weights are shared, not copied.
    """

    @torch.no_grad()
    def blend(averages: list[Tensor], currents: list[Tensor], updates: Tensor | int) -> None:
        done = int(updates)
        torch._foreach_lerp_(averages, currents, 1 - min(decay, (1 + done) / (10 + done)))

    average = AveragedModel(detector, multi_avg_fn=blend)  # type: ignore[arg-type]
    for averaged, current in zip(average.module.parameters(), detector.parameters(), strict=True):
        if not current.requires_grad:
            averaged.data = current.data
    return average

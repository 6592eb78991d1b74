"""Latency and peak memory of `dense --size base` at two image sizes, with windows and without.

    python benchmarks/plain_backbones.py --out benchmarks/results/plain_backbones.md

Weights are random, the batch is one image, each row is a process of its own. Attention is computed by torch's fused
kernel, or step by step, as in an exported network, with the weights of all pairs of cells in memory. On a CPU, time is
CPU time, whatever else the machine does, and memory the largest resident size, weights and libraries included; on a
GPU, time is wall time and memory what torch has allocated.
"""

import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from jsonargparse import auto_cli

SETTINGS = [  # image size, cells along a window, fused attention
    (512, 32, True),
    (1024, 32, True),
    (1024, 64, True),
    (1024, 32, False),
    (1024, 64, False),
]
NAMES = tuple(f"class {n}" for n in range(20))


@dataclass
class Cost:
    """Seconds of a forward pass with its decoding, and bytes at the peak."""

    seconds: float
    peak: int
    parameters: int


def main(out: Path | None = None, device: str = "cpu", repeats: int = 1) -> None:
    """Measure all settings, print a table, and write it.

    Args:
        out: a Markdown file.
        device: cpu or cuda.
        repeats: passes after one to warm up; the fastest is shown.
    """
    lines = []
    for side, window, fused in SETTINGS:
        command = [sys.executable, __file__, "--child", device, str(repeats), str(side), str(window), str(int(fused))]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        cost = Cost(**json.loads(output.splitlines()[-1]))
        windows = (side // 16 // window) ** 2
        reach = "to all" if windows == 1 else f"in {windows} windows, 4 of 12 blocks to all"
        lines.append(
            f"| {side} | {reach} | {'fused' if fused else 'step by step'} | {cost.seconds:.3g} s | "
            f"{cost.peak / 2**20:.0f} MiB |"
        )
        print(lines[-1], flush=True)
    name = torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} thread(s)"
    text = (
        f"`dense --size base`, {cost.parameters / 1e6:.1f} M parameters, one image, {name}, torch "
        f"{torch.__version__}; `python benchmarks/plain_backbones.py`.\n\n"
        "| pixels | cells attend | attention | time | peak memory |\n|---|---|---|---|---|\n"
    )
    if out is not None:
        out.write_text(text + "\n".join(lines) + "\n")


@torch.inference_mode()
def child(device: str, repeats: int, side: int, window: int, fused: bool) -> None:
    """One setting; prints its cost."""
    from timm.layers import set_fused_attn

    from boxwright.models.backbones.plain_vit import WindowedAttention
    from boxwright.models.registry import build

    set_fused_attn(fused)
    detector = build("dense", "base", NAMES, image_size=side, pretrained=False).to(device).eval()
    for module in detector.modules():
        if isinstance(module, WindowedAttention):
            module.side = window
    images_BCHW = torch.rand(1, 3, side, side, device=device)
    sizes_B2 = torch.tensor([[side, side]], device=device)
    times = []
    for _ in range(repeats + 1):
        start = _now(device)
        detector.decode(detector(images_BCHW, sizes_B2))
        times.append(_now(device) - start)
    parameters = sum(p.numel() for p in detector.parameters())
    print(json.dumps(vars(Cost(min(times[1:]), _memory(device), parameters))))


def _memory(device: str) -> int:
    """Bytes at the peak so far."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], *map(int, sys.argv[3:6]), fused=sys.argv[6] == "1")
    else:
        auto_cli(main)

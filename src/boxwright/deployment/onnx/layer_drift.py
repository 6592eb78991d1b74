"""Where an exported file parts from its source: the layers of both, side by side, on one image."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from boxwright.deployment.onnx.quantise import nothing_else
from boxwright.deployment.onnx.to_onnx import CANVAS
from boxwright.types import Detector

CHOICES = ("TopK", "Loop")


def moved(model: onnx.ModelProto, detector: Detector, image_HW3: np.ndarray) -> list[tuple[str, float]]:
    """The layers by how much further they are from their source than the layer before them, worst first.

    Layers with weights of their own, up to where the best places are chosen, behind which rows may stand in another
    order, or to the loop of a detector that writes. How far is the length of the difference, as a share of the length
    of what the source has.

    Args:
        model: the file.
        detector: its source, on the CPU, in evaluation mode.
        image_HW3: uint8.
    """
    last = _last_nodes(model, detector)
    outputs = list(dict.fromkeys(last.values()))
    *canvas, said = _run(model, [*CANVAS[:2], *outputs], image_HW3)
    theirs = _watched(detector, list(last), *(torch.from_numpy(part) for part in canvas))
    found, before = [], 0.0
    for name, source in theirs.items():
        file = said[outputs.index(last[name])]
        if source.shape != file.shape:
            continue
        apart = float(np.linalg.norm(file - source) / max(float(np.linalg.norm(source)), 1e-12))
        if not np.isfinite(apart):  # all behind it is as broken
            return [(name, float("inf"))]
        found.append((name, apart - before))
        before = apart
    return sorted(found, key=lambda each: -each[1])


def _last_nodes(model: onnx.ModelProto, detector: Detector) -> dict[str, str]:
    """The output of the last node of each layer, where the graph has any."""
    layers = {
        name
        for name, module in detector.named_modules()
        if list(module.parameters(recurse=False)) and not isinstance(module, nn.GroupNorm)  # its end has no name
    }
    found: dict[str, str] = {}
    behind: set[str] = set()
    for node in model.graph.node:
        if node.op_type in CHOICES or behind.intersection(node.input):
            behind.update(node.output)
            continue
        path = node.name.partition("/")[0].split(".") if "/" in node.name else []
        found |= {name: node.output[0] for n in range(len(path)) if (name := ".".join(path[: n + 1])) in layers}
    return found


def _run(model: onnx.ModelProto, wanted: list[str], image_HW3: np.ndarray) -> list[Any]:
    """What the graph has at these names; of those behind the first two, a list."""
    open_model = onnx.ModelProto()
    open_model.CopyFrom(model)
    del open_model.graph.output[:]
    open_model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(open_model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    canvas, size, *rest = session.run(wanted, nothing_else(model) | {"images": image_HW3[None]})
    return [canvas, size, [np.asarray(part, np.float32) for part in rest]]


@torch.inference_mode()
def _watched(detector: Detector, names: list[str], canvas_BCHW: Tensor, size_2: Tensor) -> dict[str, np.ndarray]:
    """What each of these layers says, in the order in which they speak; of one that speaks often, the last time."""
    said: dict[str, np.ndarray] = {}

    def note(name: str) -> Any:
        def hook(_: nn.Module, given: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                said.pop(name, None)
                said[name] = output.to(torch.float32, copy=True).numpy()  # what follows may write over it

        return hook

    handles = [detector.get_submodule(name).register_forward_hook(note(name)) for name in names]
    detector.decode(detector(canvas_BCHW, size_2[None]))
    for handle in handles:
        handle.remove()
    return said

"""Where the numbers of an exported file begin to differ from its source: layer by layer, on one image."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from boxwright.deployment.onnx.quantise import seed_input
from boxwright.deployment.onnx.to_onnx import CANVAS
from boxwright.types import Detector

SELECTIONS = ("TopK", "Loop")  # operators behind which rows of file and source may differ in order or number


def drift_by_layer(model: onnx.ModelProto, detector: Detector, image_HW3: np.ndarray) -> list[tuple[str, float]]:
    """How much each layer adds to the relative error of the file, worst first.

    Only layers with parameters of their own, in front of the first selection of rows or the loop that generates tokens.
    The relative error is the norm of the difference over the norm of the source's output; a layer adds its own error
    less that of the layer before it.

    Args:
        model: the file.
        detector: its source, on the CPU, in evaluation mode.
        image_HW3: uint8.
    """
    output_of = _output_names(model, detector)
    outputs = list(dict.fromkeys(output_of.values()))
    canvas_1CHW, size_2, file_outputs = _run(model, [*CANVAS[:2], *outputs], image_HW3)
    source_outputs = _layer_outputs(detector, list(output_of), torch.from_numpy(canvas_1CHW), torch.from_numpy(size_2))
    drifts, before = [], 0.0
    for name, source in source_outputs.items():
        file = file_outputs[outputs.index(output_of[name])]
        if source.shape != file.shape:
            continue
        error = float(np.linalg.norm(file - source) / max(float(np.linalg.norm(source)), 1e-12))
        if not np.isfinite(error):  # so are all layers behind it
            return [(name, float("inf"))]
        drifts.append((name, error - before))
        before = error
    return sorted(drifts, key=lambda each: -each[1])


def _output_names(model: onnx.ModelProto, detector: Detector) -> dict[str, str]:
    """The output of the last node of each layer, for the layers that have nodes in the graph."""
    layers = {
        name
        for name, module in detector.named_modules()
        if list(module.parameters(recurse=False)) and not isinstance(module, nn.GroupNorm)  # its last node has no path
    }
    found: dict[str, str] = {}
    selected: set[str] = set()
    for node in model.graph.node:
        if node.op_type in SELECTIONS or selected.intersection(node.input):
            selected.update(node.output)
            continue
        path = node.name.partition("/")[0].split(".") if "/" in node.name else []
        found |= {name: node.output[0] for n in range(len(path)) if (name := ".".join(path[: n + 1])) in layers}
    return found


def _run(model: onnx.ModelProto, names: list[str], image_HW3: np.ndarray) -> tuple[Any, Any, list[np.ndarray]]:
    """The values with these names in a graph: the first two, and a list of the others in fp32."""
    open_model = onnx.ModelProto()
    open_model.CopyFrom(model)
    del open_model.graph.output[:]
    open_model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(open_model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    canvas_1CHW, size_2, *others = session.run(names, seed_input(model) | {"images": image_HW3[None]})
    return canvas_1CHW, size_2, [np.asarray(each, np.float32) for each in others]


@torch.inference_mode()
def _layer_outputs(detector: Detector, names: list[str], canvas_BCHW: Tensor, size_2: Tensor) -> dict[str, np.ndarray]:
    """The outputs of these layers, in the order of their last call; of several calls, the last output."""
    outputs: dict[str, np.ndarray] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                outputs.pop(name, None)
                outputs[name] = output.to(torch.float32, copy=True).numpy()  # later layers may overwrite it

        return hook

    handles = [detector.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    detector.decode(detector(canvas_BCHW, size_2[None]))
    for handle in handles:
        handle.remove()
    return outputs

"""A detector as one ONNX file."""

import json
from pathlib import Path
from typing import Any

import onnx
import torch

from boxwright.config import require
from boxwright.deployment.onnx.letterbox import letterbox
from boxwright.deployment.onnx.sequence_loop import sequence_graph
from boxwright.deployment.onnx.to_onnx import CANVAS, OPSET, OUTPUTS, Core, canvas_shape, example, export_graph
from boxwright.inference.sequence_stream import token_format
from boxwright.models import registry
from boxwright.models.sequence.sequence_detector import SequenceDetector
from boxwright.runtime.onnx_checksum import with_checksum
from boxwright.runtime.onnx_detector import FORMAT
from boxwright.types import Detector

MOST_BYTES = 2**31 - 2**20  # what one protobuf holds, less some room for all but weights


@torch.no_grad()
def to_onnx(detector: Detector) -> onnx.ModelProto:
    """The graph from `images` (B, H, W, 3) uint8 to `boxes`, `scores` and `labels`, in fp32.

    Args:
        detector: on the CPU, in evaluation mode.

    Raises:
        UserError: if its weights take 2 GB or more.
    """
    size = sum(tensor.nbytes for tensor in detector.state_dict().values())
    require(size < MOST_BYTES, f"the weights take {size / 2**30:.1f} GB; one ONNX file holds less than 2 GB.")
    fit, rest = letterbox(detector.image_size, detector.square_canvas), _core_graph(detector)
    rest.ir_version = fit.ir_version
    whole = onnx.compose.merge_models(fit, rest, [(name, name) for name in CANVAS])
    whole.graph.name = "boxwright"
    del whole.opset_import[:]
    whole.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    _name_axes(whole)
    describe(whole, detector, "fp32")
    onnx.checker.check_model(whole)
    return whole


def describe(model: onnx.ModelProto, detector: Detector, precision: str) -> None:
    """Write metadata into the file: format, names, image size, model, precision, card and opset."""
    metadata = {
        "boxwright": str(FORMAT),
        "names": json.dumps(detector.names),
        "image_size": str(detector.image_size),
        "model": registry.name_of(detector),
        "precision": precision,
        "card": json.dumps(detector.card),
        "opset": str(OPSET),
    }
    if isinstance(detector, SequenceDetector) and detector.accepts_given:
        metadata["sentence"] = token_format(detector).to_json()
    onnx.helper.set_model_props(model, metadata)


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write the file, its weights inside, with a checksum at its end."""
    path.write_bytes(with_checksum(model.SerializeToString(deterministic=True)))


def _name_axes(model: onnx.ModelProto) -> None:
    """Name the axes of the outputs."""
    for output, rest in zip(model.graph.output, ([4], [], [], [], ["slots"], ["slots"]), strict=False):
        shape: list[Any] = ["batch", "detections", *rest]
        for dim, size in zip(output.type.tensor_type.shape.dim, shape, strict=True):
            if not dim.HasField("dim_value"):
                dim.dim_param = size


def _core_graph(detector: Detector) -> onnx.ModelProto:
    """All that follows the letterbox."""
    if isinstance(detector, SequenceDetector):
        return sequence_graph(detector)
    shapes = (canvas_shape(detector), None, None)
    return export_graph(Core(detector).eval(), example(detector), shapes, CANVAS, OUTPUTS)

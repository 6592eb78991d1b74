"""Quantisation: weights and their inputs in half precision, or in 8-bit integers.

Only convolutions and matrix products with weights are changed. Norms, softmax, and all arithmetic of boxes and scores
stay fp32, because half precision represents every integer only up to 2048, and 8 bits have 256 values. The modules that
the detector names stay fp32, too (`Detector.fp32_modules`): they have few outputs, and no later layer corrects their
errors.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from boxwright.deployment.onnx.to_onnx import quiet

WEIGHTED = ("Conv", "Gemm", "MatMul")
LARGEST_FP16 = 65504.0
FP32_STRIDES = (4, 8)  # up to this stride, layers on feature maps stay fp32: their channels differ too much in range
SMALL = 2048  # elements; smaller tensors are not worth scales of their own
BOX = 4  # coordinates; tables of boxes or points are no weights, and must stay exact
Reader: TypeAlias = Callable[[onnx.GraphProto, onnx.TensorProto, int], onnx.NodeProto]


def to_fp16(model: onnx.ModelProto, fp32_modules: Collection[str]) -> onnx.ModelProto:
    """The graph with convolutions and matrix products with weights in half precision.

    The loop that generates sequences computes in fp32, as its steps are so small that casts would cost more than they
    save; its weights are stored in half precision.

    Args:
        model: fp32.
        fp32_modules: names of modules that stay fp32.
    """
    half = onnx.ModelProto()
    half.CopyFrom(model)
    graph, weights = half.graph, _tensors(half.graph)
    halved: dict[str, str] = {}
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        graph.node.extend(
            _in_half(node, weights, halved, graph) if _can_be_reduced(node, weights, fp32_modules) else [node]
        )
    _drop_unused(graph)
    _store_weights(graph, _read_from_half)
    return half


def _in_half(
    node: onnx.NodeProto, weights: dict[str, onnx.TensorProto], halved: dict[str, str], graph: onnx.GraphProto
) -> Iterator[onnx.NodeProto]:
    """The node in half precision, between casts of its inputs and its output."""
    for position, name in enumerate(node.input):
        if name and name not in halved:
            halved[name] = f"{name}.half"
            if name in weights:
                values = numpy_helper.to_array(weights[name]).astype(np.float16)
                graph.initializer.append(numpy_helper.from_array(values, halved[name]))
            else:
                yield helper.make_node("Cast", [name], [halved[name]], f"{node.name}.in", to=TensorProto.FLOAT16)
        node.input[position] = halved.get(name, name)
    output = node.output[0]
    node.output[0] = f"{output}.half_of"
    yield node
    yield helper.make_node("Cast", [node.output[0]], [output], f"{node.name}.out", to=TensorProto.FLOAT)


def to_int8(
    model: onnx.ModelProto,
    images: Iterable[np.ndarray],
    fp32_modules: Collection[str],
    fp32_stride: int = FP32_STRIDES[0],
) -> onnx.ModelProto:
    """The graph with convolutions and matrix products with weights in 8 bits, with ranges calibrated on images.

    Layers that are computed in fp32, as the loop that generates sequences, have their weights stored in 8 bits.

    Args:
        model: fp32.
        images: (H, W, 3) uint8 each, like those that the detector will get.
        fp32_modules: names of modules that stay fp32.
        fp32_stride: layers on feature maps up to this stride, in pixels, stay fp32.
    """
    with TemporaryDirectory() as folder, quiet(), _errors_only():
        fp32_file, int8_file = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save_model(model, fp32_file)
        chosen = quantisable(model, fp32_modules, fp32_stride)
        quantize_static(
            fp32_file, int8_file, CalibrationImages(model, images), quant_format=QuantFormat.QDQ, per_channel=True,
            op_types_to_quantize=sorted({node.op_type for node in chosen}),
            nodes_to_quantize=[node.name for node in chosen],
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax, extra_options={"WeightSymmetric": True},
        )  # fmt: skip
        quantised = onnx.load_model(int8_file)
    _drop_zero_points(quantised.graph)
    _store_weights(quantised.graph, _read_from_8_bits)
    del quantised.graph.value_info[:]
    return quantised


@contextmanager
def _errors_only() -> Iterator[None]:
    """Let onnxruntime log errors only: it warns of inputs with a default value, which given objects are.

    The level can't be read, so onnxruntime's default is set afterwards.
    """
    warnings, errors = 2, 3
    onnxruntime.set_default_logger_severity(errors)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(warnings)


def quantisable(
    model: onnx.ModelProto, fp32_modules: Collection[str], fp32_stride: int = FP32_STRIDES[0]
) -> list[onnx.NodeProto]:
    """The nodes to compute in 8 bits; for the arguments see `to_int8`."""
    weights, fine_maps = _tensors(model.graph), _fine_maps(model.graph, fp32_stride)
    return [
        node
        for node in model.graph.node
        if _can_be_reduced(node, weights, fp32_modules) and node.output[0] not in fine_maps
    ]


class CalibrationImages(CalibrationDataReader):
    """Images for onnxruntime's calibration, one at a time.

    Args:
        model: to be calibrated.
        images: (H, W, 3) uint8 each.
    """

    def __init__(self, model: onnx.ModelProto, images: Iterable[np.ndarray]):
        self.images, self.model = iter(images), model

    def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[bad-override]
        """The inputs for the next image; None after the last."""
        image_HW3 = next(self.images, None)
        return None if image_HW3 is None else seed_input(self.model) | {"images": image_HW3[None]}


def seed_input(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The input `seed` for one image, where a graph has it: 0."""
    return {"seed": np.zeros(1, np.int64)} if any(value.name == "seed" for value in model.graph.input) else {}


def _fine_maps(graph: onnx.GraphProto, most: int) -> set[str]:
    """Names of maps whose stride is at most `most` canvas pixels; a sum of maps has the stride of the coarsest."""
    stride_of = {"canvas": 1}
    for node in graph.node:
        inputs = [stride_of[name] for name in node.input if name in stride_of]
        if inputs and not list(_loop_bodies(node)):
            strides = next((attribute.ints for attribute in node.attribute if attribute.name == "strides"), [1])
            stride_of |= dict.fromkeys(node.output, max(inputs) * strides[0])
    return {name for name, stride in stride_of.items() if stride <= most}


def _store_weights(graph: onnx.GraphProto, reader: Reader) -> None:
    """Store large weights that are still fp32 in fewer bits, loops included; nodes at the graph's begin restore them.

    Args:
        graph: changed in place.
        reader: adds a tensor to the graph in fewer bits, with scales along an axis, and returns the node that reads it.
    """
    readers: list[onnx.NodeProto] = []
    for part in [graph, *(body for node in graph.node for body in _loop_bodies(node))]:
        weights = _tensors(part)
        for node in part.node:
            for tensor in [weights[name] for name in node.input if name in weights]:
                if _is_large(tensor) and (node.op_type in WEIGHTED or tensor.dims[-1] > BOX):
                    axis = len(tensor.dims) - 1 if node.op_type == "MatMul" else 0
                    readers.append(reader(graph, weights.pop(tensor.name), axis))
                    part.initializer.remove(tensor)
    nodes = [*readers, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _is_large(tensor: onnx.TensorProto) -> bool:
    """Whether it is a large fp32 weight; tables that forbid tokens by -inf are none."""
    if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2 or np.prod(tensor.dims) < SMALL:
        return False
    return bool(np.isfinite(numpy_helper.to_array(tensor)).all())


def _read_from_half(graph: onnx.GraphProto, tensor: onnx.TensorProto, axis: int) -> onnx.NodeProto:
    """Add a tensor to the graph in half precision; the node that casts it to fp32."""
    half = f"{tensor.name}.stored"
    graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), half))
    return helper.make_node("Cast", [half], [tensor.name], f"{tensor.name}.read", to=TensorProto.FLOAT)


def _read_from_8_bits(graph: onnx.GraphProto, tensor: onnx.TensorProto, axis: int) -> onnx.NodeProto:
    """Add a tensor to the graph in 8 bits, with a scale for each index of `axis`; the node that restores it in fp32."""
    values = numpy_helper.to_array(tensor)
    others = tuple(n for n in range(values.ndim) if n != axis)
    largest = np.abs(values).max(others, keepdims=True)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    integers, scales = f"{tensor.name}.int8", f"{tensor.name}.scale"
    graph.initializer.append(numpy_helper.from_array(np.round(values / scale).astype(np.int8), integers))
    graph.initializer.append(numpy_helper.from_array(scale.ravel(), scales))
    return helper.make_node("DequantizeLinear", [integers, scales], [tensor.name], f"{tensor.name}.read", axis=axis)


def _drop_zero_points(graph: onnx.GraphProto) -> None:
    """Drop the zero points of weights and biases where they are all zero, which is ONNX's default."""
    tensors = _tensors(graph)
    for node in graph.node:
        stored = node.op_type == "DequantizeLinear" and node.input[0] in tensors
        if stored and len(node.input) == 3 and not numpy_helper.to_array(tensors[node.input[2]]).any():
            del node.input[2]
    _drop_unused(graph)


def _can_be_reduced(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto], fp32_modules: Collection[str]) -> bool:
    """Whether a node multiplies by weights in the range of half precision, and belongs to no module that stays fp32."""
    candidate = node.op_type in WEIGHTED and not belongs_to(node.name, fp32_modules)
    weight = weights.get(node.input[1]) if candidate else None
    if weight is None or weight.data_type != TensorProto.FLOAT:
        return False
    return float(np.abs(numpy_helper.to_array(weight)).max(initial=0)) < LARGEST_FP16


def belongs_to(name: str, modules: Collection[str]) -> bool:
    """Whether a node, named like ``head.many/Conv_12``, belongs to a module with one of these names, at any depth."""
    return not set(name.partition("/")[0].split(".")).isdisjoint(modules)


def _tensors(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in graph.initializer}


def _loop_bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The subgraphs of a node: the body of a loop; none of other nodes."""
    yield from (attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH)


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in _all_inputs(node)} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _all_inputs(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node reads, inside its loops as well."""
    yield from node.input
    for graph in _loop_bodies(node):
        yield from (name for inner in graph.node for name in _all_inputs(inner))
        yield from (value.name for value in graph.output)

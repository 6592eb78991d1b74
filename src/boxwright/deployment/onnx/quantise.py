"""Quantisation: weights and their inputs in half precision, or in 8-bit integers.

Only convolutions and products with weights are changed; norms, softmax, and all arithmetic of boxes and scores stay
fp32, because half precision counts whole pixels only up to 2048, and 8 bits have 256 values. So do the modules that the
detector names (`Detector.fp32_modules`): their outputs are few, and nothing behind them corrects their errors.
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
LARGEST = 65504.0  # number in half precision
FINE = (4, 8)  # pixels per cell: the backbone's maps up to this stay out of 8 bits, their channels differ too much
SMALL = 2048  # elements; smaller tensors are not worth a scale of their own
Reader: TypeAlias = Callable[[onnx.GraphProto, onnx.TensorProto, int], onnx.NodeProto]


def to_fp16(model: onnx.ModelProto, fp32_modules: Collection[str]) -> onnx.ModelProto:
    """The graph with convolutions and products with weights in half precision.

    The loop that generates sequences computes in fp32, as its steps are too small to pay for the casts; its weights are
    stored in half precision.

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
    _store(graph, _read_from_half)
    return half


def _in_half(
    node: onnx.NodeProto, weights: dict[str, onnx.TensorProto], halved: dict[str, str], graph: onnx.GraphProto
) -> Iterator[onnx.NodeProto]:
    """The node between two casts, with weights of half precision."""
    for place, name in enumerate(node.input):
        if name and name not in halved:
            halved[name] = f"{name}.half"
            if name in weights:
                values = numpy_helper.to_array(weights[name]).astype(np.float16)
                graph.initializer.append(numpy_helper.from_array(values, halved[name]))
            else:
                yield helper.make_node("Cast", [name], [halved[name]], f"{node.name}.in", to=TensorProto.FLOAT16)
        node.input[place] = halved.get(name, name)
    output = node.output[0]
    node.output[0] = f"{output}.half_of"
    yield node
    yield helper.make_node("Cast", [node.output[0]], [output], f"{node.name}.out", to=TensorProto.FLOAT)


def to_int8(
    model: onnx.ModelProto, images: Iterable[np.ndarray], fp32_modules: Collection[str], fine: int = FINE[0]
) -> onnx.ModelProto:
    """The graph with convolutions and products with weights in 8 bits, in ranges calibrated on images.

    What is not computed in 8 bits, as the loop that generates sequences, has its weights stored in them.

    Args:
        model: fp32.
        images: (H, W, 3) uint8 each, like those that the detector will get.
        fp32_modules: names of modules that stay fp32.
        fine: maps with strides up to this, in pixels, are computed in fp32.
    """
    with TemporaryDirectory() as folder, quiet(), _errors_only():
        plain, out = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save_model(model, plain)
        chosen = quantisable(model, fp32_modules, fine)
        quantize_static(
            plain, out, Images(model, images), quant_format=QuantFormat.QDQ, per_channel=True,
            op_types_to_quantize=sorted({node.op_type for node in chosen}),
            nodes_to_quantize=[node.name for node in chosen],
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax, extra_options={"WeightSymmetric": True},
        )  # fmt: skip
        small = onnx.load_model(out)
    _drop_zeros(small.graph)
    _store(small.graph, _read_from_8_bits)
    del small.graph.value_info[:]
    return small


@contextmanager
def _errors_only() -> Iterator[None]:
    """Let onnxruntime log errors only, not that given objects are inputs with a default.

    The level before can't be read, so its default comes back.
    """
    warnings, errors = 2, 3
    onnxruntime.set_default_logger_severity(errors)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(warnings)


def quantisable(model: onnx.ModelProto, fp32_modules: Collection[str], fine: int = FINE[0]) -> list[onnx.NodeProto]:
    """The nodes that are computed in 8 bits."""
    weights, whole = _tensors(model.graph), _fine(model.graph, fine)
    return [
        node
        for node in model.graph.node
        if _can_be_reduced(node, weights, fp32_modules) and node.output[0] not in whole
    ]


class Images(CalibrationDataReader):
    """Images one by one, as onnxruntime's calibration takes them.

    Args:
        model: to be calibrated.
        images: (H, W, 3) uint8 each.
    """

    def __init__(self, model: onnx.ModelProto, images: Iterable[np.ndarray]):
        self.images, self.model = iter(images), model

    def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[bad-override]
        """The inputs for the next image; None after the last."""
        image_HW3 = next(self.images, None)
        return None if image_HW3 is None else nothing_else(self.model) | {"images": image_HW3[None]}


def nothing_else(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Inputs of a graph for one image, besides the image."""
    return {"seed": np.zeros(1, np.int64)} if any(value.name == "seed" for value in model.graph.input) else {}


def _fine(graph: onnx.GraphProto, fine: int) -> set[str]:
    """Maps with at most so many pixels of the canvas a cell; one to which a coarser map was added counts as that."""
    pixels = {"canvas": 1}
    for node in graph.node:
        known = [pixels[name] for name in node.input if name in pixels]
        if known and not list(_inside(node)):
            strides = next((attribute.ints for attribute in node.attribute if attribute.name == "strides"), [1])
            pixels |= dict.fromkeys(node.output, max(known) * strides[0])
    return {name for name, each in pixels.items() if each <= fine}


def _store(graph: onnx.GraphProto, reader: Reader) -> None:
    """Let large weights that are still fp32, those of loops, too, be read from fewer bits before all is computed."""
    read: list[onnx.NodeProto] = []
    for part in [graph, *(inner for node in graph.node for inner in _inside(node))]:
        kept = _tensors(part)
        for node in part.node:
            for tensor in [kept[name] for name in node.input if name in kept]:
                if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1 and np.prod(tensor.dims) >= SMALL:
                    axis = len(tensor.dims) - 1 if node.op_type == "MatMul" else 0
                    read.append(reader(graph, kept.pop(tensor.name), axis))
                    part.initializer.remove(tensor)
    nodes = [*read, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _read_from_half(graph: onnx.GraphProto, tensor: onnx.TensorProto, axis: int) -> onnx.NodeProto:
    """The node that gives a tensor, whose numbers lie in the graph in half precision."""
    half = f"{tensor.name}.stored"
    graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), half))
    return helper.make_node("Cast", [half], [tensor.name], f"{tensor.name}.read", to=TensorProto.FLOAT)


def _read_from_8_bits(graph: onnx.GraphProto, tensor: onnx.TensorProto, axis: int) -> onnx.NodeProto:
    """The node that gives a tensor, whose numbers lie in the graph, with a scale for each place of an axis."""
    values = numpy_helper.to_array(tensor)
    others = tuple(n for n in range(values.ndim) if n != axis)
    most = np.abs(values).max(others, keepdims=True)
    scale = np.where(most > 0, most / 127, 1).astype(np.float32)
    whole, scales = f"{tensor.name}.int8", f"{tensor.name}.scale"
    graph.initializer.append(numpy_helper.from_array(np.round(values / scale).astype(np.int8), whole))
    graph.initializer.append(numpy_helper.from_array(scale.ravel(), scales))
    return helper.make_node("DequantizeLinear", [whole, scales], [tensor.name], f"{tensor.name}.read", axis=axis)


def _drop_zeros(graph: onnx.GraphProto) -> None:
    """Zero points of weights and biases that are all zero, as ONNX takes them for granted."""
    tensors = _tensors(graph)
    for node in graph.node:
        stored = node.op_type == "DequantizeLinear" and node.input[0] in tensors
        if stored and len(node.input) == 3 and not numpy_helper.to_array(tensors[node.input[2]]).any():
            del node.input[2]
    _drop_unused(graph)


def _can_be_reduced(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto], fp32_modules: Collection[str]) -> bool:
    """Whether a node multiplies with weights that fit into half precision, and belongs to no module that stays fp32."""
    wanted = node.op_type in WEIGHTED and not belongs_to(node.name, fp32_modules)
    weight = weights.get(node.input[1]) if wanted else None
    if weight is None or weight.data_type != TensorProto.FLOAT:
        return False
    return float(np.abs(numpy_helper.to_array(weight)).max(initial=0)) < LARGEST


def belongs_to(name: str, modules: Collection[str]) -> bool:
    """Whether a node, named like ``head.many/Conv_12``, belongs to one of these modules."""
    return not set(name.partition("/")[0].split(".")).isdisjoint(modules)


def _tensors(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in graph.initializer}


def _inside(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The bodies of a node that is a loop."""
    yield from (attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH)


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in _all_inputs(node)} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _all_inputs(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node looks at, from inside its loops as well."""
    yield from node.input
    for graph in _inside(node):
        yield from (name for inner in graph.node for name in _all_inputs(inner))
        yield from (value.name for value in graph.output)

"""Smaller files: weights and what they multiply in half precision, or in whole numbers of 8 bits.

Only convolutions and products with weights are changed; norms, softmax, and all arithmetic of boxes and scores stay
fp32, because half precision counts whole pixels only up to 2048, and 8 bits know 256 values. So do the layers that say
where something is or what (`LAST`), whose outputs are few and whose errors nothing behind them mends, and the loop in
which sentences are written.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WEIGHTED = ("Conv", "Gemm", "MatMul")
LAST = ("classify", "locate", "many", "distance", "rivals", "rivalry", "offset", "weight", "place", "point", "propose")
LARGEST = 65504.0  # of half precision


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with convolutions and products with weights in half precision, those of loops, too."""
    half = onnx.ModelProto()
    half.CopyFrom(model)
    _halve(half.graph, {})
    return half


def _halve(graph: onnx.GraphProto, outer: dict[str, onnx.TensorProto]) -> None:
    own = {tensor.name: tensor for tensor in graph.initializer}
    weights, nodes = outer | own, list(graph.node)
    halved: dict[str, str] = {}
    del graph.node[:]
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _halve(attribute.g, weights)
        graph.node.extend(_in_half(node, weights, halved, graph) if _weighs(node, weights) else [node])
    used = {name for node in graph.node for name in _all_inputs(node)} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _weighs(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> bool:
    """Whether a node multiplies with weights that half precision holds, and is not one of the last."""
    if node.op_type not in WEIGHTED or len(node.input) < 2 or is_last(node.name):
        return False
    weight = weights.get(node.input[1])
    if weight is None or weight.data_type != TensorProto.FLOAT:
        return False
    return float(np.abs(numpy_helper.to_array(weight)).max(initial=0)) < LARGEST


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
    node.output[0] = f"{output}.whole"
    yield node
    yield helper.make_node("Cast", [node.output[0]], [output], f"{node.name}.out", to=TensorProto.FLOAT)


def _all_inputs(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node looks at, from inside its loops as well."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _all_inputs(inner)
        yield from (value.name for value in attribute.g.output)


def is_last(name: str) -> bool:
    """Whether a node belongs to the layers that stay fp32, by its name: ``head.many/Conv_12``."""
    return bool(set(name.partition("/")[0].split(".")) & set(LAST))


def to_int8(model: onnx.ModelProto, images: Iterable[np.ndarray], out: Path) -> None:
    """Write the graph with convolutions and products with weights in 8 bits, between the ranges seen on images.

    Args:
        model: fp32.
        images: (H, W, 3) uint8 each, such as the detector is going to see.
        out: the file.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    chosen = quantisable(model)
    with TemporaryDirectory() as folder, _quiet():
        plain = Path(folder) / "fp32.onnx"
        onnx.save_model(model, plain)
        quantize_static(
            plain, out, _Reader(model, images), quant_format=QuantFormat.QDQ, per_channel=True,
            op_types_to_quantize=sorted({node.op_type for node in chosen}),
            nodes_to_quantize=[node.name for node in chosen],
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax, extra_options={"WeightSymmetric": True},
        )  # fmt: skip


def quantisable(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes that are put into 8 bits."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    return [node for node in model.graph.node if _weighs(node, weights)]


class _Reader:
    """Images one by one, as onnxruntime's calibration takes them."""

    def __init__(self, model: onnx.ModelProto, images: Iterable[np.ndarray]):
        self.images = iter(images)
        self.draws = any(value.name == "seed" for value in model.graph.input)

    def get_next(self) -> dict[str, Any] | None:
        image_HW3 = next(self.images, None)
        if image_HW3 is None:
            return None
        return {"images": image_HW3[None]} | ({"seed": np.zeros(1, np.int64)} if self.draws else {})


@contextmanager
def _quiet() -> Iterator[None]:
    """Without advice to preprocess: the exporter has folded what can be folded."""
    import logging

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)

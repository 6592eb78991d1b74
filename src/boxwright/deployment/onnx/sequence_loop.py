"""The graph of a sequence detector: its start, a loop over objects, and its end.

Torch exports the three modules (`boxwright.deployment.onnx.sequence_modules`). The loop is built here: it carries what
one object hands to the next, it collects the parts of the objects, and its body reads weights, and what is constant for
an image, from the graph around it.
"""

from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, tensor
from torch.export import Dim

from boxwright.deployment.onnx.loop_tensors import LoopTensor, LoopTensors
from boxwright.deployment.onnx.sequence_modules import SequenceEnd, SequenceStart, SequenceStep
from boxwright.deployment.onnx.to_onnx import CANVAS, OUTPUTS, canvas_shape, example, export_graph
from boxwright.models.sequence.sequence_detector import SequenceDetector

BODY, END = "object.", "end."  # before all names in the body of the loop, and behind the loop
GIVEN = ("known_boxes", "known_labels")  # given objects of every image
WANTED = "wanted_classes"
SEQUENCE = ("order", "words", "word_log_probs")  # see `SequenceEnd`


def sequence_graph(detector: SequenceDetector) -> onnx.ModelProto:
    """All that follows the letterbox.

    Where tokens are drawn, `seed` int64 (B,) is another input. For a detector that accepts given objects so are
    `given_boxes` float32 (B, G, 4), `given_labels` int64 (B, G) and `wanted_classes` bool (K,), all three optional, and
    `SEQUENCE` are further outputs.
    """
    start, inputs = SequenceStart(detector).eval(), _example_inputs(detector)
    begun = start.begin(*inputs)
    step = SequenceStep(detector, begun).eval()
    main = _start_graph(detector, start, inputs, LoopTensors(tuple(begun[1])).names)
    body = _body_graph(step, detector.square_canvas)
    end = SequenceEnd(detector, step.tensors).eval()
    _add_loop(main.graph, body.graph, step.tensors, step.settings.objects)
    _add_end(main.graph, _end_graph(detector, end), end.tensors.names)
    if "seed" in step.tensors.names:
        main.graph.input.append(helper.make_tensor_value_info("seed", TensorProto.INT64, ["batch"]))
    return main


def _example_inputs(detector: SequenceDetector) -> tuple[Tensor, ...]:
    """Of `SequenceStart`."""
    canvas_BCHW, size_2, original_2 = example(detector)
    if not detector.accepts_given:
        return canvas_BCHW, size_2
    boxes_BG4, labels_BG = tensor([10.0, 20, 30, 40]).repeat(2, 3, 1), tensor([[0, 0, -1], [0, -1, -1]])
    return canvas_BCHW, size_2, original_2, boxes_BG4, labels_BG, tensor([True] * len(detector.names))


def _start_graph(
    detector: SequenceDetector, start: SequenceStart, inputs: tuple[Tensor, ...], outputs: list[str]
) -> onnx.ModelProto:
    rows = Dim.DYNAMIC
    shapes = (canvas_shape(detector), None, None, {0: rows, 1: rows}, {0: rows, 1: rows}, None)[: len(inputs)]
    main = export_graph(start, inputs, (shapes,), [*CANVAS, *GIVEN, WANTED][: len(inputs)], outputs)
    if detector.accepts_given:
        _make_given_optional(main.graph)
        every_K = np.ones(len(detector.names), bool)
        main.graph.initializer.append(numpy_helper.from_array(every_K, WANTED))
    return main


def _make_given_optional(graph: onnx.GraphProto) -> None:
    """Given objects as inputs with a default: one row without an object, for all images of a batch."""
    values = [value for value in graph.input if value.name in GIVEN]
    defaults = [np.zeros((1, 1, 4), np.float32), np.full((1, 1), -1, np.int64)]
    nodes = [helper.make_node("Shape", [CANVAS[0]], ["known_batch"], "known/batch", start=0, end=1)]
    for value, default, inner in zip(values, defaults, GIVEN, strict=True):
        graph.input.remove(value)
        name = inner.replace("known", "given")
        shape = ["rows", "given", *default.shape[2:]]
        kind = helper.np_dtype_to_tensor_dtype(default.dtype)
        graph.input.append(helper.make_tensor_value_info(name, kind, shape))
        graph.initializer.append(numpy_helper.from_array(default, name))
        graph.initializer.append(numpy_helper.from_array(np.ones(default.ndim - 1, np.int64), f"{inner}_rest"))
        nodes.append(
            helper.make_node("Concat", ["known_batch", f"{inner}_rest"], [f"{inner}_shape"], f"{inner}/shape", axis=0)
        )
        nodes.append(helper.make_node("Expand", [name, f"{inner}_shape"], [inner], f"{inner}/rows"))
    nodes += graph.node
    del graph.node[:]
    graph.node.extend(nodes)


def _body_graph(step: SequenceStep, square_canvas: bool) -> onnx.ModelProto:
    """The body of the loop; its inputs are the number, whether to go on, and the carried tensors."""
    slots = step.settings.constraints.slots
    given = LoopTensors(
        tuple(_grown(entry, 3 * slots) for entry in step.tensors.only("carried", "constant", "input").entries)
    )
    carried = given.only("carried").names
    outputs = ["goes_on", *(f"next_{name}" for name in carried), *step.tensors.only("collected").names]
    shapes = (None, given.shapes(square_canvas))
    body = export_graph(step, (tensor(2), *given.examples), shapes, ["number", *given.names], outputs)
    body = onnx.compose.add_prefix(body, BODY)
    _rename(body.graph, {BODY + name: name for name in given.names if name not in carried})
    values = {value.name: value for value in body.graph.input}
    goes = helper.make_tensor_value_info("goes", TensorProto.BOOL, [])
    del body.graph.input[:]
    body.graph.input.extend([values[f"{BODY}number"], goes, *(values[BODY + name] for name in carried)])
    for value in [*body.graph.input[2:], *body.graph.output[1:]]:  # their sizes change from one object to the next
        value.type.tensor_type.ClearField("shape")
    return body


def _grown(entry: LoopTensor, length: int) -> LoopTensor:
    """An empty cache as it is after a few objects; others as they are."""
    shape = [length if size == 0 else size for size in entry.example.shape]
    return replace(entry, example=entry.example.new_zeros(shape)) if 0 in entry.example.shape else entry


def _add_loop(graph: onnx.GraphProto, body: onnx.GraphProto, tensors: LoopTensors, objects: int) -> None:
    carried = tensors.only("carried").names
    most = helper.make_tensor("objects", TensorProto.INT64, [], [objects])
    true = helper.make_tensor("goes_first", TensorProto.BOOL, [], [True])
    outputs = [*(f"final_{name}" for name in carried), *tensors.only("collected").names]
    graph.node.append(helper.make_node("Loop", [most.name, true.name, *carried], outputs, name="objects", body=body))
    graph.initializer.extend([most, true])


def _end_graph(detector: SequenceDetector, end: SequenceEnd) -> onnx.ModelProto:
    shapes = (None, None, end.tensors.shapes(detector.square_canvas))
    outputs = [*OUTPUTS, *(SEQUENCE if detector.accepts_given else [])]
    inputs = (*example(detector)[1:], *end.tensors.examples)
    return onnx.compose.add_prefix(export_graph(end, inputs, shapes, [*CANVAS[1:], *end.tensors.names], outputs), END)


def _add_end(graph: onnx.GraphProto, end: onnx.ModelProto, inputs: list[str]) -> None:
    """What follows the loop; its outputs are those of the whole graph."""
    outputs = [value.name.removeprefix(END) for value in end.graph.output]
    original = next(value for value in end.graph.input if value.name == f"{END}original")
    _rename(end.graph, {END + name: name for name in [*CANVAS[1:], *inputs, *outputs]})
    graph.node.extend(end.graph.node)
    graph.initializer.extend(end.graph.initializer)
    if "original" not in {value.name for value in graph.input}:
        graph.input.append(original)
    del graph.output[:]
    graph.output.extend(end.graph.output)


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Give values other names, wherever they appear outside of subgraphs."""
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in [*graph.input, *graph.output]:
        value.name = names.get(value.name, value.name)

"""The graph of a detector that writes: its beginning, a loop over objects, and its end.

Torch exports the three parts (`boxwright.deployment.onnx.sequence_modules`); the loop around the second is laid
here, because its caches grow. What an object hands to the next is carried by the loop, its words are collected by it,
and what all objects see of the image, and the weights, are looked at from inside.
"""

from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor
from torch.export import Dim

from boxwright.deployment.onnx.sequence_modules import ObjectStep, SequenceEnd, SequenceStart
from boxwright.deployment.onnx.to_onnx import CANVAS, OUTPUTS, converted, example, pads
from boxwright.models.sequence.sequence_detector import SequenceDetector

INSIDE = "object."  # before all names in the loop
KNOWN = ("known_boxes", "known_labels")  # given objects, for every image
WANTED = "wanted_classes"
SENTENCE = ("order", "words", "word_log_probs")  # see `boxwright.deployment.onnx.sequence_modules.SequenceEnd`


def sequence_graph(detector: SequenceDetector) -> onnx.ModelProto:
    """All that follows the letterbox.

    Where words are drawn, `seed` int64 (B,) is an input more. Where it can be asked, so are `given_boxes` float32
    (B, G, 4), `given_labels` int64 (B, G) and `wanted_classes` bool (K,), which may be left out, and `SENTENCE` are
    outputs more.
    """
    begin, one = SequenceStart(detector).eval(), ObjectStep(detector).eval()
    inputs = _inputs(detector, one)
    made = begin(*inputs)
    seen_end = len(made) - one.asked
    state, seen = made[: one.carried], made[one.carried : seen_end]
    main = _begin(detector, begin, inputs, len(state), len(seen))
    body = _object(one, state, seen, made[seen_end:], grows=not pads(detector))
    end = _end(detector, one)
    _join(main, body, end, one)
    return main


def _names(kind: str, count: int) -> list[str]:
    return [f"{kind}_{n}" for n in range(count)]


def _inputs(detector: SequenceDetector, one: ObjectStep) -> tuple[Tensor, ...]:
    """An example of what comes before the first object."""
    canvas_BCHW, size_2, original_2 = example(detector)
    if not one.asked:
        return canvas_BCHW, size_2
    boxes_BG4 = torch.tensor([10.0, 20, 30, 40]).repeat(2, 3, 1)
    return canvas_BCHW, size_2, original_2, boxes_BG4, torch.tensor([[0, 0, -1], [0, -1, -1]])


def _begin(
    detector: SequenceDetector, begin: SequenceStart, inputs: tuple[Tensor, ...], state: int, seen: int
) -> onnx.ModelProto:
    rows, asked = Dim.DYNAMIC, len(inputs) > 2
    canvas = {0: rows} if pads(detector) else {0: rows, 2: rows, 3: rows}
    shapes = (canvas, None, None, {0: rows, 1: rows}, {0: rows, 1: rows})
    outputs = [*_names("state", state), *_names("seen", seen), *(["given"] if asked else [])]
    main = converted(begin, inputs, shapes[: len(inputs)], [*CANVAS, *KNOWN][: len(inputs)], outputs)
    if asked:
        _let_leave_out(main.graph)
        every_K = np.ones(len(detector.names), bool)
        main.graph.input.append(helper.make_tensor_value_info(WANTED, TensorProto.BOOL, every_K.shape))
        main.graph.initializer.append(numpy_helper.from_array(every_K, WANTED))
    return main


def _let_leave_out(graph: onnx.GraphProto) -> None:
    """Given objects as inputs with a default, one that is none, for all images of a batch."""
    known = [value for value in graph.input if value.name in KNOWN]
    nothing = [np.zeros((1, 1, 4), np.float32), np.full((1, 1), -1, np.int64)]
    nodes = [helper.make_node("Shape", [CANVAS[0]], ["known_batch"], "known/batch", start=0, end=1)]
    for value, default, inner in zip(known, nothing, KNOWN, strict=True):
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


def _object(
    one: ObjectStep, state: tuple[Tensor, ...], seen: tuple[Tensor, ...], given: tuple[Tensor, ...], grows: bool
) -> onnx.ModelProto:
    """The body of the loop; what is not carried is not among its inputs."""
    slots, kept = one.language.constraints.slots, one.carried - 2 * one.layers
    caches = [cache.new_zeros(*cache.shape[:2], 3 * slots, cache.shape[3]) for cache in state[kept:]]
    tensors, rows = [*state[:kept], *caches, *seen], Dim.DYNAMIC
    shapes = [{0: rows}] * kept + [{0: rows, 2: rows}] * len(caches) + [_dynamic(part, grows) for part in seen]
    names = [*_names("state", len(state)), *_names("seen", len(seen))]
    if given:
        every_K = torch.ones(len(one.language.constraints.class_tokens_K), dtype=torch.bool)
        tensors, names = [*tensors, *given, every_K], [*names, "given", WANTED]
        shapes = [*shapes, {0: rows, 1: rows}, None]
    if one.language.sampling.draws:
        tensors, shapes, names = [*tensors, torch.tensor([3, 4])], [*shapes, {0: rows}], [*names, "seed"]
    outputs = ["goes_on", *_names("next", len(state)), *_words(one)]
    body = converted(one, (torch.tensor(2), *tensors), (None, tuple(shapes)), ["number", *names], outputs)
    body = onnx.compose.add_prefix(body, INSIDE)
    outside = {INSIDE + name: name for name in names[len(state) :]}
    for node in body.graph.node:
        node.input[:] = [outside.get(name, name) for name in node.input]
    carried = [value for value in body.graph.input if value.name not in outside]
    del body.graph.input[:]
    body.graph.input.extend([carried[0], helper.make_tensor_value_info("goes", TensorProto.BOOL, []), *carried[1:]])
    for value in [*body.graph.input[2:], *body.graph.output[1:]]:  # their sizes change from one object to the next
        value.type.tensor_type.ClearField("shape")
    return body


def _dynamic(part: Tensor, grows: bool) -> dict[int, Any]:
    """Axes that can change of what is seen of the images: (B, heads, M, E), a mask (B, 1, 1, M), or (B or 1, P, E)."""
    rows = {0: Dim.DYNAMIC} if part.shape[0] > 1 else {}
    return rows | ({3 if part.dtype == torch.bool else 2: Dim.DYNAMIC} if grows else {})


def _words(one: ObjectStep) -> list[str]:
    return ["tokens", "log_probs", "classes", *(["coordinates"] if one.coordinates else [])]


def _end(detector: SequenceDetector, one: ObjectStep) -> onnx.ModelProto:
    grammar, rows = one.language.constraints, Dim.DYNAMIC
    slots, classes = grammar.slots, len(grammar.class_tokens_K)
    words = [torch.zeros(3, 2, slots, dtype=torch.int64), torch.zeros(3, 2, slots), torch.zeros(3, 2, classes)]
    if one.coordinates:
        words.append(torch.zeros(3, 2, slots - 1, dtype=torch.int64))
    shapes = [None, None, *({0: rows, 1: rows} for _ in words)]
    if one.asked:
        words.append(torch.ones(classes, dtype=torch.bool))
        shapes.append(None)
    inputs = (*example(detector)[1:], *words)
    return converted(SequenceEnd(detector).eval(), inputs, tuple(shapes), [*CANVAS[1:], *_read(one)], _outputs(one))


def _read(one: ObjectStep) -> list[str]:
    """What the end looks at besides the canvas."""
    return [*_words(one), *([WANTED] if one.asked else [])]


def _outputs(one: ObjectStep) -> list[str]:
    return [*OUTPUTS, *(SENTENCE if one.asked else [])]


def _join(main: onnx.ModelProto, body: onnx.ModelProto, end: onnx.ModelProto, one: ObjectStep) -> None:
    """Lay the loop behind the beginning, and the end behind it."""
    state, graph = _names("state", one.carried), main.graph
    most = helper.make_tensor("objects", TensorProto.INT64, [], [one.language.objects])
    true = helper.make_tensor("goes_first", TensorProto.BOOL, [], [True])
    words = _words(one)
    last = [f"last_{name}" for name in state]
    loop = helper.make_node("Loop", [most.name, true.name, *state], [*last, *words], name="objects", body=body.graph)
    end = onnx.compose.add_prefix(end, "end.")
    known = {f"end.{name}": name for name in [*CANVAS[1:], *_read(one)]} | {
        f"end.{name}": name for name in _outputs(one)
    }
    for node in end.graph.node:
        node.input[:] = [known.get(name, name) for name in node.input]
        node.output[:] = [known.get(name, name) for name in node.output]
    graph.node.extend([loop, *end.graph.node])
    graph.initializer.extend([most, true, *end.graph.initializer])
    if not one.asked:
        inputs = [value for value in end.graph.input if value.name == "end.original"]
        inputs[0].name = "original"
        graph.input.extend(inputs)
    if one.language.sampling.draws:
        graph.input.append(helper.make_tensor_value_info("seed", TensorProto.INT64, ["batch"]))
    del graph.output[:]
    graph.output.extend(end.graph.output)
    for value in graph.output:
        value.name = value.name.removeprefix("end.")

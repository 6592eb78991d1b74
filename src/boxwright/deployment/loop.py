"""The graph of a detector that writes: its beginning, a loop over objects, and its end.

Torch exports the three parts (`boxwright.deployment.writers`); the loop around the second is laid here, because its
caches grow. What an object hands to the next is carried by the loop, its words are collected by it, and what all
objects see of the image, and the weights, are looked at from inside.
"""

from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor
from torch.export import Dim

from boxwright.deployment.graph import CANVAS, OUTPUTS, converted, example, pads
from boxwright.deployment.writers import Begin, End, OneObject, Writer

INSIDE = "object."  # before all names in the loop


def writer_graph(detector: Writer) -> onnx.ModelProto:
    """All that follows the letterbox; one input more, `seed` int64 (B,), where words are drawn."""
    begin, one = Begin(detector).eval(), OneObject(detector).eval()
    given = begin(*example(detector)[:2])
    state, seen = given[: one.carried], given[one.carried :]
    main = _begin(detector, begin, len(state), len(seen))
    body = _object(one, state, seen, grows=not pads(detector))
    end = _end(detector, one, body)
    _join(main, body, end, one)
    return main


def _names(kind: str, count: int) -> list[str]:
    return [f"{kind}_{n}" for n in range(count)]


def _begin(detector: Writer, begin: Begin, state: int, seen: int) -> onnx.ModelProto:
    rows = Dim.DYNAMIC
    canvas = {0: rows} if pads(detector) else {0: rows, 2: rows, 3: rows}
    outputs = [*_names("state", state), *_names("seen", seen)]
    return converted(begin, example(detector)[:2], (canvas, None), CANVAS[:2], outputs)


def _object(one: OneObject, state: tuple[Tensor, ...], seen: tuple[Tensor, ...], grows: bool) -> onnx.ModelProto:
    """The body of the loop; what is not carried is not among its inputs."""
    slots, kept = one.language.grammar.slots, one.carried - 2 * one.layers
    caches = [cache.new_zeros(*cache.shape[:2], 3 * slots, cache.shape[3]) for cache in state[kept:]]
    tensors, rows = [*state[:kept], *caches, *seen], Dim.DYNAMIC
    shapes = [{0: rows}] * kept + [{0: rows, 2: rows}] * len(caches) + [_dynamic(part, grows) for part in seen]
    names = [*_names("state", len(state)), *_names("seen", len(seen))]
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


def _words(one: OneObject) -> list[str]:
    return ["tokens", "log_probs", "classes", *(["coordinates"] if one.coordinates else [])]


def _end(detector: Writer, one: OneObject, body: onnx.ModelProto) -> onnx.ModelProto:
    grammar, rows = one.language.grammar, Dim.DYNAMIC
    slots, classes = grammar.slots, len(grammar.class_tokens_K)
    words = [torch.zeros(3, 2, slots, dtype=torch.int64), torch.zeros(3, 2, slots), torch.zeros(3, 2, classes)]
    if one.coordinates:
        words.append(torch.zeros(3, 2, slots - 1, dtype=torch.int64))
    shapes = (None, None, *({0: rows, 1: rows} for _ in words))
    inputs = (*example(detector)[1:], *words)
    return converted(End(detector).eval(), inputs, shapes, [*CANVAS[1:], *_words(one)], OUTPUTS)


def _join(main: onnx.ModelProto, body: onnx.ModelProto, end: onnx.ModelProto, one: OneObject) -> None:
    """Lay the loop behind the beginning, and the end behind it."""
    state, graph = _names("state", one.carried), main.graph
    most = helper.make_tensor("objects", TensorProto.INT64, [], [one.language.objects])
    true = helper.make_tensor("goes_first", TensorProto.BOOL, [], [True])
    words = _words(one)
    last = [f"last_{name}" for name in state]
    loop = helper.make_node("Loop", [most.name, true.name, *state], [*last, *words], name="objects", body=body.graph)
    end = onnx.compose.add_prefix(end, "end.")
    known = {f"end.{name}": name for name in [*CANVAS[1:], *words]} | {f"end.{name}": name for name in OUTPUTS}
    for node in end.graph.node:
        node.input[:] = [known.get(name, name) for name in node.input]
        node.output[:] = [known.get(name, name) for name in node.output]
    graph.node.extend([loop, *end.graph.node])
    graph.initializer.extend([most, true, *end.graph.initializer])
    inputs = [value for value in end.graph.input if value.name == "end.original"]
    inputs[0].name = "original"
    graph.input.extend(inputs)
    if one.language.sampling.draws:
        graph.input.append(helper.make_tensor_value_info("seed", TensorProto.INT64, ["batch"]))
    del graph.output[:]
    graph.output.extend(end.graph.output)
    for value in graph.output:
        value.name = value.name.removeprefix("end.")

"""From torch to ONNX: the path from pixels to boxes as two graphs, the letterbox and all that follows it.

        images (B, H, W, 3) ── letterbox ──┬─ canvas ─────┐
                                           ├─ size ───────┼── network, decoding, selection ── boxes, scores, labels
                                           └─ original ───┘

The letterbox is written in ONNX, as it depends on sizes that are only known when it runs; the rest is exported from
torch. Pillow's and onnxruntime's resizing agree in all but a few pixels, and in those to one grey level.
"""

import ast
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import onnx
import torch
from onnxscript import opset20 as op
from onnxscript.function_libs.torch_lib.ops.nn import aten_scaled_dot_product_attention
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.export import Dim

from boxwright.boxes import to_pixels
from boxwright.types import Detector, Predictions

OPSET, IR_VERSION = 20, 10
CANVAS = ("canvas", "size", "original")  # between the two graphs
OUTPUTS = ("boxes", "scores", "labels")


class Core(nn.Module):
    """What follows the letterbox.

    Args:
        detector: in evaluation mode.
    """

    def __init__(self, detector: Detector):
        super().__init__()
        self.detector = exportable_copy(detector)

    def forward(self, canvas_BCHW: Tensor, size_2: Tensor, original_2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (B, D, 4) in pixels of the original, clipped to it; scores and labels (B, D), best first.

        Args:
            canvas_BCHW: uint8.
            size_2: height and width of the valid area.
            original_2: height and width of the images before they were resized.
        """
        predictions = self.detector.decode(self.detector(canvas_BCHW, size_2.expand(canvas_BCHW.shape[0], -1)))
        return in_pixels(predictions, torch.tensor(canvas_BCHW.shape[-2:]), size_2, original_2)


def in_pixels(
    predictions: Predictions, canvas_2: Tensor, size_2: Tensor, original_2: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes in pixels of the original, clipped to it, scores and labels; numbers as `Predictions.to_detections` has
    them.

    Args:
        predictions: in [0, 1] of the canvas.
        canvas_2, size_2, original_2: height and width of the canvas, of the valid area, and of the image before it was
            resized.
    """
    boxes_BD4 = to_pixels(predictions.boxes_BD4, canvas_2, size_2, original_2)
    return boxes_BD4, predictions.scores_BD.float(), predictions.labels_BD


def exportable_copy(detector: Detector) -> Detector:
    """A copy that can be exported."""
    copy = deepcopy(detector).requires_grad_(False)
    for parent in list(copy.modules()):
        for name, module in parent.named_children():
            if type(module) is Conv2dSame and module.dilation == (1, 1):
                setattr(parent, name, SameConv(module))
    return copy


def example(detector: Detector) -> tuple[Tensor, Tensor, Tensor]:
    """What the letterbox gives for two images."""
    side = detector.image_size
    height, width = (side, side) if detector.square_canvas else (side * 3 // 4, side)
    canvas_BCHW = torch.zeros(2, 3, height, width, dtype=torch.uint8)
    return canvas_BCHW, torch.tensor([side * 3 // 4, side]), torch.tensor([480, 640])


def canvas_shape(detector: Detector) -> dict[int, Any]:
    """The axes of the canvas that can have any size, as `torch.export` takes them."""
    axes = (0,) if detector.square_canvas else (0, 2, 3)
    return dict.fromkeys(axes, Dim.DYNAMIC)


class SameConv(nn.Module):
    """A convolution with TensorFlow's padding, as ONNX has it; torch's export can't compute padding for unknown sizes.

    Args:
        conv: timm's, which it replaces in a graph.
    """

    def __init__(self, conv: Conv2dSame):
        super().__init__()
        self.conv = conv

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Feature maps."""
        if not torch.compiler.is_exporting():
            return self.conv(x_BCHW)
        conv, (images, _, height, width) = self.conv, x_BCHW.shape
        down, across = conv.stride
        return torch.onnx.ops.symbolic(
            "Conv",
            [x_BCHW, conv.weight, *([] if conv.bias is None else [conv.bias])],
            {"auto_pad": "SAME_UPPER", "group": conv.groups, "kernel_shape": list(conv.kernel_size),
             "strides": list(conv.stride)},
            dtype=x_BCHW.dtype,
            shape=[images, conv.out_channels, (height + down - 1) // down, (width + across - 1) // across],
            version=OPSET,
        )  # fmt: skip


def stable_sort(x: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
    """`torch.sort` in ONNX, for the exporter; of equal values, `TopK` takes the first one first."""
    length = op.Gather(op.Shape(x), op.Constant(value_ints=[dim]))  # type: ignore[bad-specialization]
    return op.TopK(x, length, axis=dim, largest=int(descending), sorted=1)


def running_max(x: Any, dim: int) -> Any:
    """`torch.cummax` of rows (B, L) in ONNX, for the exporter; its indices are wrong, as they are not used."""
    assert dim == 1
    zero, one, first, second, third = (_constant(value) for value in (0, 1, [0], [1], [2]))
    index_L: Any = op.Range(zero, op.Squeeze(op.Gather(op.Shape(x), second)), one)
    before_LL = op.LessOrEqual(op.Unsqueeze(index_L, first), op.Unsqueeze(index_L, second))
    values_BLL: Any = op.Where(before_LL, op.Unsqueeze(x, second), op.ReduceMin(x, keepdims=0))
    values_BL = op.ReduceMax(values_BLL, third, keepdims=0)
    return values_BL, values_BL


def attention(
    query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    """`F.scaled_dot_product_attention` in ONNX, for the exporter, whose own takes three times as many nodes."""
    if attn_mask is not None or is_causal or scale is not None or enable_gqa:
        return aten_scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa
        )  # fmt: skip
    narrower: Any = op.Constant(value_float=query.shape[-1] ** -0.5)
    scores: Any = op.MatMul(op.Mul(query, narrower), op.Transpose(key, perm=[0, 1, 3, 2]))
    return op.MatMul(op.Softmax(scores, axis=-1), value)


def _constant(value: int | list[int]) -> Any:
    return op.Constant(value_ints=value) if isinstance(value, list) else op.Constant(value_int=value)


def export_graph(
    module: nn.Module,
    examples: tuple[Tensor, ...],
    shapes: tuple[Any, ...],
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> onnx.ModelProto:
    """The graph of a module.

    Args:
        module: in evaluation mode.
        examples: of its inputs.
        shapes: their axes of any size, as `torch.export` takes them.
        inputs, outputs: their names.
    """
    with quiet():
        program = torch.onnx.export(
            module, examples, dynamo=True, opset_version=OPSET, verbose=False,
            input_names=inputs, output_names=outputs, dynamic_shapes=shapes,
            custom_translation_table={
                torch.ops.aten.sort.stable: stable_sort,
                torch.ops.aten.cummax.default: running_max,
                torch.ops.aten.scaled_dot_product_attention.default: attention,
            },
        )  # fmt: skip
    assert program is not None
    model = program.model_proto
    for number, node in enumerate(model.graph.node):
        node.name = f"{_module(node)}/{node.op_type}_{number}"
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info):
        del part.metadata_props[:]  # paths of the code on this machine
        part.doc_string = ""
    return model


def _module(node: onnx.NodeProto) -> str:
    """The path of the module that computes a node: ``head.many``."""
    scopes = next((entry.value for entry in node.metadata_props if entry.key == "pkg.torch.onnx.name_scopes"), "[]")
    inside = [name for name in ast.literal_eval(scopes)[:-1] if name]
    return inside[-1].removeprefix("detector").removeprefix(".") if inside else ""


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter's remarks to its own developers; remove handlers that libraries add to the root logger."""
    before, handlers = logging.root.manager.disable, list(logging.root.handlers)
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        logging.root.handlers[:] = handlers

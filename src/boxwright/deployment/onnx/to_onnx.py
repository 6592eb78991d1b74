"""The whole path from pixels to boxes as two graphs: the letterbox, and all that follows it.

        images (B, H, W, 3) ── letterbox ──┬─ canvas ─────┐
                                           ├─ size ───────┼── network, decoding, selection ── boxes, scores, labels
                                           └─ original ───┘

The letterbox is written in ONNX, as it depends on sizes that are only known when it runs; the rest is torch, and is
exported. Pillow's and onnxruntime's resizing agree in all but a few pixels, and in those to one grey level.
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
from timm.layers import Conv2dSame
from torch import Tensor, nn

from boxwright.boxes import to_pixels
from boxwright.models.deformable import Deformable
from boxwright.models.detr import Detr
from boxwright.models.replication import Replication
from boxwright.types import Detector, Predictions

OPSET, IR_VERSION = 20, 10
CANVAS = ("canvas", "size", "original")  # between the two graphs
OUTPUTS = ("boxes", "scores", "labels")


def pads(detector: Detector) -> bool:
    """Whether it looks at a square canvas; detectors of DETR's kind look no further than the images reach."""
    return not isinstance(detector, Detr | Deformable | Replication)


class Core(nn.Module):
    """What follows the letterbox.

    Args:
        detector: in evaluation mode.
    """

    def __init__(self, detector: Detector):
        super().__init__()
        self.detector = prepared(detector)

    def forward(self, canvas_BCHW: Tensor, size_2: Tensor, original_2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (B, D, 4) in pixels of the original, clipped to it; scores and labels (B, D), best first.

        Args:
            canvas_BCHW: uint8.
            size_2: height and width of the part of the canvas that is image.
            original_2: height and width of the images before they were resized.
        """
        said = self.detector.decode(self.detector(canvas_BCHW, size_2.expand(canvas_BCHW.shape[0], -1)))
        return in_pixels(said, torch.tensor(canvas_BCHW.shape[-2:]), size_2, original_2)


def in_pixels(said: Predictions, canvas_2: Tensor, size_2: Tensor, original_2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes in pixels of the original, clipped to it, scores and labels; numbers as `Predictions.to_detections` has
    them.

    Args:
        said: in [0, 1] of the canvas.
        canvas_2, size_2, original_2: height and width of the canvas, of the part of it that is image, and of the image
            before it was resized.
    """
    boxes_BD4 = to_pixels(said.boxes_BD4, canvas_2, size_2, original_2)
    return boxes_BD4, said.scores_BD.float(), said.labels_BD


def prepared(detector: Detector) -> Detector:
    """A copy that can be exported."""
    copy = deepcopy(detector).requires_grad_(False)
    for parent in list(copy.modules()):
        for name, module in parent.named_children():
            if type(module) is Conv2dSame and module.dilation == (1, 1):
                setattr(parent, name, SameConv(module))
    return copy


def example(detector: Detector) -> tuple[Tensor, Tensor, Tensor]:
    """What the letterbox gives, of two images."""
    side = detector.image_size
    height, width = (side, side) if pads(detector) else (side * 3 // 4, side)
    canvas_BCHW = torch.zeros(2, 3, height, width, dtype=torch.uint8)
    return canvas_BCHW, torch.tensor([side * 3 // 4, side]), torch.tensor([480, 640])


class SameConv(nn.Module):
    """A convolution with TensorFlow's padding, as ONNX has it; torch would lose itself in sizes not known yet.

    Args:
        conv: timm's, which it stands for in a graph.
    """

    def __init__(self, conv: Conv2dSame):
        super().__init__()
        self.conv = conv

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The maps."""
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
    """`torch.cummax` of rows (B, L) in ONNX, for the exporter; its values alone, as no one asks where they were."""
    assert dim == 1
    zero, one, first, second, third = (_constant(value) for value in (0, 1, [0], [1], [2]))
    places_L: Any = op.Range(zero, op.Squeeze(op.Gather(op.Shape(x), second)), one)
    seen_LL = op.LessOrEqual(op.Unsqueeze(places_L, first), op.Unsqueeze(places_L, second))
    seen_BLL: Any = op.Where(seen_LL, op.Unsqueeze(x, second), op.ReduceMin(x, keepdims=0))
    values_BL = op.ReduceMax(seen_BLL, third, keepdims=0)
    return values_BL, values_BL


def _constant(value: int | list[int]) -> Any:
    return op.Constant(value_ints=value) if isinstance(value, list) else op.Constant(value_int=value)


def converted(
    module: nn.Module, given: tuple[Tensor, ...], shapes: tuple[Any, ...], inputs: Sequence[str], outputs: Sequence[str]
) -> onnx.ModelProto:
    """The graph of a module.

    Args:
        module: in evaluation mode.
        given: what it is given, as an example.
        shapes: which axes of that may change, as `torch.export` has it.
        inputs, outputs: their names.
    """
    with quiet():
        program = torch.onnx.export(
            module, given, dynamo=True, opset_version=OPSET, verbose=False,
            input_names=inputs, output_names=outputs, dynamic_shapes=shapes,
            custom_translation_table={
                torch.ops.aten.sort.stable: stable_sort,
                torch.ops.aten.cummax.default: running_max,
            },
        )  # fmt: skip
    assert program is not None
    model = program.model_proto
    for number, node in enumerate(model.graph.node):
        node.name = f"{_module(node)}/{node.op_type}_{number}"
    for said in (model, model.graph, *model.graph.node, *model.graph.value_info):
        del said.metadata_props[:]  # where the code lay on the machine of whoever exported
        said.doc_string = ""
    return model


def _module(node: onnx.NodeProto) -> str:
    """The path of the module that a node comes of: ``head.many``."""
    said = next((entry.value for entry in node.metadata_props if entry.key == "pkg.torch.onnx.name_scopes"), "[]")
    inside = [name for name in ast.literal_eval(said)[:-1] if name]
    return inside[-1].removeprefix("detector").removeprefix(".") if inside else ""


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter's remarks to its own developers; handlers that libraries give the root logger go again."""
    before, handlers = logging.root.manager.disable, list(logging.root.handlers)
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        logging.root.handlers[:] = handlers

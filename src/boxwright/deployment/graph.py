"""The whole path from pixels to boxes as two graphs: the letterbox, and all that follows it.

        images (B, H, W, 3) ── letterbox ──┬─ canvas ─────┐
                                           ├─ size ───────┼── network, decoding, selection ── boxes, scores, labels
                                           └─ original ───┘

The letterbox is written in ONNX, as it depends on sizes that are only known when it runs; the rest is torch, and is
exported. Pillow's and onnxruntime's resizing agree in all but a few pixels, and in those to one grey level.
"""

import onnx
import torch
from torch import Tensor, nn

from boxwright.models.deformable import Deformable
from boxwright.models.detr import Detr
from boxwright.types import Detector

OPSET, IR_VERSION = 20, 10
CANVAS = ("canvas", "size", "original")  # between the two graphs
OUTPUTS = ("boxes", "scores", "labels")

# As `boxwright.data.images.fit`. Without `exclude_outside`, pixels at the edge would be taken twice.
_LETTERBOX = """
<ir_version: {ir_version}, opset_import: ["" : {opset}]>
letterbox (uint8[batch, height, width, 3] images)
  => (uint8[batch, 3, rows, columns] canvas, int64[2] size, int64[2] original)
<
  float[2] fit_side = {{{side}, {side}}},
  int64[1] fit_one = {{1}},
  int64[1] fit_three = {{3}},
  int64[2] fit_sides = {{{side}, {side}}},
  int64[6] fit_nothing = {{0, 0, 0, 0, 0, 0}}
>
{{
  original = Shape <start = 1, end = 3> (images)
  fit_exact = Cast <to = 1> (original)
  fit_ratios = Div (fit_side, fit_exact)
  fit_ratio = ReduceMin <keepdims = 0> (fit_ratios)
  fit_wanted = Mul (fit_exact, fit_ratio)
  fit_rounded = Round (fit_wanted)
  fit_whole = Cast <to = 7> (fit_rounded)
  size = Max (fit_whole, fit_one)
  fit_batch = Shape <start = 0, end = 1> (images)
  fit_shape = Concat <axis = 0> (fit_batch, size, fit_three)
  fit_resized = Resize <mode = "linear", antialias = 1, exclude_outside = 1> (images, , , fit_shape)
  {laid}
}}
"""
_PADDED = """fit_planes = Transpose <perm = [0, 3, 1, 2]> (fit_resized)
  fit_room = Sub (fit_sides, size)
  fit_pads = Concat <axis = 0> (fit_nothing, fit_room)
  canvas = Pad (fit_planes, fit_pads)"""
_UNPADDED = "canvas = Transpose <perm = [0, 3, 1, 2]> (fit_resized)"


def pads(detector: Detector) -> bool:
    """Whether it looks at a square canvas; detectors of DETR's kind look no further than the images reach."""
    return not isinstance(detector, Detr | Deformable)


def letterbox(side: int, padded: bool) -> onnx.ModelProto:
    """The graph that fits images into a canvas: `images` uint8 (B, H, W, 3) to `canvas` uint8 (B, 3, h, w).

    Args:
        side: of the canvas, in pixels.
        padded: fill the canvas up to a square; else it is as large as the resized images.
    """
    laid = _PADDED if padded else _UNPADDED
    return onnx.parser.parse_model(_LETTERBOX.format(ir_version=IR_VERSION, opset=OPSET, side=side, laid=laid))


class Core(nn.Module):
    """What follows the letterbox.

    Args:
        detector: in evaluation mode.
    """

    def __init__(self, detector: Detector):
        super().__init__()
        self.detector = detector

    def forward(self, canvas_BCHW: Tensor, size_2: Tensor, original_2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (B, D, 4) in pixels of the original, clipped to it; scores and labels (B, D), best first.

        Args:
            canvas_BCHW: uint8.
            size_2: height and width of the part of the canvas that is image.
            original_2: height and width of the images before they were resized.
        """
        said = self.detector.decode(self.detector(canvas_BCHW, size_2.expand(len(canvas_BCHW), -1)))
        scale_2 = torch.tensor(canvas_BCHW.shape[-2:]) / size_2 * original_2  # as `Predictions.to_detections`
        scale_4, limit_4 = scale_2.flip(0).repeat(2), original_2.flip(0).repeat(2)
        boxes_BD4 = torch.minimum((said.boxes_BD4.float() * scale_4).clamp(min=0), limit_4.float())
        return boxes_BD4, said.scores_BD.float(), said.labels_BD

    def example(self) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs like those of the graph, of two images."""
        side = self.detector.image_size
        height, width = (side, side) if pads(self.detector) else (side * 3 // 4, side)
        canvas_BCHW = torch.zeros(2, 3, height, width, dtype=torch.uint8)
        return canvas_BCHW, torch.tensor([side * 3 // 4, side]), torch.tensor([480, 640])

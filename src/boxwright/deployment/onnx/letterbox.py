"""The letterbox as an ONNX graph, for sizes that are known only when it runs."""

import onnx

from boxwright.deployment.onnx.to_onnx import IR_VERSION, OPSET

# The same as `boxwright.images.fit`. Without `exclude_outside`, pixels at the edge would count twice.
_LETTERBOX = """
<ir_version: {ir_version}, opset_import: ["" : {opset}]>
letterbox (uint8[batch, height, width, 3] images)
  => (uint8[batch, 3, rows, columns] canvas, int64[2] size, int64[2] original)
<
  float[2] fit_side = {{{side}, {side}}},
  int64[1] fit_one = {{1}},
  int64[1] fit_three = {{3}}
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
  fit_sides = Cast <to = 7> (fit_side)
  fit_nothing = Constant <value_ints = [0, 0, 0, 0, 0, 0]> ()
  fit_room = Sub (fit_sides, size)
  fit_pads = Concat <axis = 0> (fit_nothing, fit_room)
  canvas = Pad (fit_planes, fit_pads)"""
_UNPADDED = "canvas = Transpose <perm = [0, 3, 1, 2]> (fit_resized)"


def letterbox(side: int, padded: bool) -> onnx.ModelProto:
    """The graph that fits images into a canvas: `images` uint8 (B, H, W, 3) to `canvas` uint8 (B, 3, h, w).

    Args:
        side: of the canvas, in pixels.
        padded: fill the canvas up to a square; else it is as large as the resized images.
    """
    laid = _PADDED if padded else _UNPADDED
    return onnx.parser.parse_model(_LETTERBOX.format(ir_version=IR_VERSION, opset=OPSET, side=side, laid=laid))

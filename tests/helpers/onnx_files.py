"""A detector as an ONNX file, written by hand: it finds the white box on a dark image, by looking."""

import json
from pathlib import Path

import onnx

GRAPH = """
<ir_version: 10, opset_import: ["" : 20]>
look (uint8[batch, height, width, 3] images{seed_input})
  => (float[batch, detections, 4] boxes, float[batch, detections] scores, int64[batch, detections] labels)
<
  int64[1] channel = {{3}}, int64[1] one = {{1}}, int64[1] two = {{2}}, int64[2] corners = {{1, 2}},
  int32 half = {{128}}, float high = {{0.9}}, float low = {{0.25}}
>
{{
  whole = Cast <to = 6> (images)
  darkest = ReduceMin <keepdims = 0> (whole, channel)
  white = Greater (darkest, half)
  lit = Cast <to = 6> (white)
  rows = ReduceMax <keepdims = 0> (lit, two)
  columns = ReduceMax <keepdims = 0> (lit, one)
  x1 = ArgMax <axis = 1> (columns)
  y1 = ArgMax <axis = 1> (rows)
  right = ArgMax <axis = 1, select_last_index = 1> (columns)
  bottom = ArgMax <axis = 1, select_last_index = 1> (rows)
  x2 = Add (right, one)
  y2 = Add (bottom, one)
  corners_B4 = Concat <axis = 1> (x1, y1, x2, y2)
  exact_B4 = Cast <to = 1> (corners_B4)
  box = Unsqueeze (exact_B4, one)
  any = ReduceMax <keepdims = 1> (columns, one)
  there = Cast <to = 1> (any)
  sure = Mul (there, high)
  {second}
  boxes = Concat <axis = 1> (box, box)
  scores = Concat <axis = 1> (sure, unsure)
  first = Sub (x1, x1)
  other = Add (first, one)
  labels = Concat <axis = 1> (first, other)
}}
"""


def facts(**changes: str) -> dict[str, str]:
    """What a file says of itself."""
    card = json.dumps({"licence": "none"})
    said = {"boxwright": "1", "names": '["box", "other"]', "image_size": "64", "model": "dense", "precision": "fp32"}
    return said | {"card": card, "opset": "20"} | changes


def white_boxes(path: Path, said: dict[str, str] | None = None, *, seeded: bool = False) -> Path:
    """Says each box twice: a `box` of score 0.9 and an `other` of 0.25, or if seeded, of a hundredth of the seed."""
    drawn = """seeds = Unsqueeze (seed, one)
  hundreds = Cast <to = 1> (seeds)
  unsure = Mul (hundreds, hundredth)"""
    graph = GRAPH.format(
        seed_input=", int64[batch] seed" if seeded else "", second=drawn if seeded else "unsure = Mul (there, low)"
    ).replace("low = {0.25}", "low = {0.25}, float hundredth = {0.01}" if seeded else "low = {0.25}")
    model = onnx.parser.parse_model(graph)
    onnx.helper.set_model_props(model, facts() if said is None else said)
    onnx.checker.check_model(model)
    onnx.save_model(model, path)
    return path

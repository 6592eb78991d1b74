#!/usr/bin/env bash
# `detr` nano on BCCD's official test split, on the CPU: five epochs at 192 px, as in `boxwright compare`, then by its
# recipe (320 px, 20 epochs), with its file in int8 (about an hour on one core): bash runs/bccd_detr.sh
set -euo pipefail
cd "$(dirname "$0")/.."
data=src/boxwright/bundled/bccd
runs=$(mktemp -d)
boxwright train "$data" --model detr --val-split test --image-size 192 --epochs 5 --out "$runs/short"
boxwright evaluate "$runs/short/last" "$data" --split test --out "$runs/evaluation-short"
boxwright train "$data" --model detr --val-split test --out "$runs/whole"
boxwright evaluate "$runs/whole/last" "$data" --split test --out "$runs/evaluation"
boxwright export "$runs/whole/last" --precision int8 --data "$data" --out "$runs/detr.int8.onnx"

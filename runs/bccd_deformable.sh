#!/usr/bin/env bash
# `deformable` nano on BCCD's official test split by its recipe (320 px, 20 epochs), on the CPU (about 40 minutes on one
# core), the same at 416 px (an hour), then, shorter and smaller (256 px, 8 epochs), with `detr`, Hugging Face's DETR
# and Deformable DETR and torchvision's detectors, with the same backbone, images, augmentation and epochs (about an
# hour on one core; needs `pip install transformers`): bash runs/bccd_deformable.sh
set -euo pipefail
cd "$(dirname "$0")/.."
data=src/boxwright/bundled/bccd
runs=$(mktemp -d)
boxwright train "$data" --model deformable --val-split test --out "$runs/whole"
boxwright evaluate "$runs/whole/last" "$data" --split test --out "$runs/evaluation"
boxwright train "$data" --model deformable --val-split test --image-size 416 --out "$runs/large"
boxwright evaluate "$runs/large/last" "$data" --split test --out "$runs/evaluation-large"
boxwright train "$data" --model deformable --val-split test --image-size 256 --epochs 8 --out "$runs/short"
python benchmarks/peers.py "$data" "$runs/short" --train-split train --val-split test \
    --detectors detr hf-detr hf-deformable hf-deformable-refined fcos retinanet faster-rcnn \
    --write benchmarks/results/peers.md

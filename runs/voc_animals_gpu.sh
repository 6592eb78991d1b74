#!/usr/bin/env bash
# `dense` and torchvision's FCOS and RetinaNet on voc-animals with a GPU: bash runs/voc_animals_gpu.sh FOLDER
# FOLDER holds voc-animals-train and voc-animals-val (COCO JSON). The aim is AP50 0.70 on the five animals. Not run so
# far: no GPU was at hand.
set -euo pipefail
cd "$(dirname "$0")/.."
run=$(mktemp -d)
data=$1/voc-animals
boxwright train "$data-train" --val-data "$data-val" --image-size 320 --epochs 40 --out "$run"
python benchmarks/peers.py "$data-train" "$run" --val-data "$data-val" --detectors fcos retinanet \
    --classes cat cow dog horse sheep --write benchmarks/results/peers.md

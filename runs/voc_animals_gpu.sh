#!/usr/bin/env bash
# `dense` beside torchvision's FCOS and RetinaNet on voc-animals with a GPU: bash runs/voc_animals_gpu.sh FOLDER
# Aim: five animals AP50 0.70. Not run yet: no GPU was at hand.
set -euo pipefail
cd "$(dirname "$0")/.."
python benchmarks/peers.py "$1/voc-animals-train" --val-data "$1/voc-animals-val" --image-size 320 --epochs 40 \
    --peers fcos retinanet --classes cat cow dog horse sheep --write benchmarks/results/peers.md

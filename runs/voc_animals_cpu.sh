#!/usr/bin/env bash
# `dense` and torchvision's FCOS on voc-animals, 256 px: [EPOCHS=10] bash runs/voc_animals_cpu.sh FOLDER
# FOLDER holds voc-animals-train and voc-animals-val (COCO JSON). About an hour and a half on one CPU core, less on two.
set -euo pipefail
cd "$(dirname "$0")/.."
run=$(mktemp -d)
data=$1/voc-animals
boxwright train "$data-train" --val-data "$data-val" --image-size 256 --epochs "${EPOCHS:-10}" --out "$run"
python benchmarks/peers.py "$data-train" "$run" --val-data "$data-val" --detectors fcos \
    --classes cat cow dog horse sheep --write benchmarks/results/peers.md

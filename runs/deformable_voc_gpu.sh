#!/usr/bin/env bash
# `deformable`, `detr`, Hugging Face's DETR and Deformable DETR, and torchvision's detectors, on voc-animals at
# 320 px with a GPU: bash runs/deformable_voc_gpu.sh FOLDER [EPOCHS]
# FOLDER holds voc-animals-train and voc-animals-val (COCO JSON). Same backbone, images, augmentation and epochs; needs
# `pip install transformers`. The aims: 10 AP over the other transformers, AP50 0.76 and AP 0.50 on the five animals.
# Not run so far: no GPU was at hand.
set -euo pipefail
cd "$(dirname "$0")/.."
run=$(mktemp -d)
data=$1/voc-animals
boxwright train "$data-train" --val-data "$data-val" --model deformable --image-size 320 --epochs "${2:-40}" --out "$run"
python benchmarks/peers.py "$data-train" "$run" --val-data "$data-val" \
    --detectors detr hf-detr hf-deformable hf-deformable-refined retinanet fcos faster-rcnn \
    --classes cat cow dog horse sheep --write benchmarks/results/peers.md

#!/usr/bin/env bash
# Ours and others on BCCD's official split, 192 px, with the same backbone, images, augmentation and CPU time, two seeds:
# [MINUTES=3] [SEEDS="0 1"] bash runs/peers_bccd.sh [DETECTOR ...]
# About an hour and a half on one core for all; needs `pip install transformers`.
set -euo pipefail
cd "$(dirname "$0")/.."
detectors=("$@")
[[ $# -gt 0 ]] || detectors=(dense deformable detr pix2seq patchseq pix2seq-tutorial hf-detr hf-deformable
    hf-deformable-refined fcos retinanet faster-rcnn)
OMP_NUM_THREADS=1 python benchmarks/peers.py src/boxwright/bundled/bccd --train-split train --val-split test \
    --image-size 192 --minutes "${MINUTES:-3}" --seeds ${SEEDS:-0 1} --detectors "${detectors[@]}" \
    --write benchmarks/results/peers.md

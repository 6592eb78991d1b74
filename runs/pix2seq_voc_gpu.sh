#!/usr/bin/env bash
# `pix2seq` on voc-animals with one GPU, about 30 minutes: bash runs/pix2seq_voc_gpu.sh FOLDER
# FOLDER holds voc-animals-train and voc-animals-val (COCO JSON). The aim is AP50 0.40 on the five animals, with the
# curve still rising. Not run so far: no GPU was at hand.
set -euo pipefail
cd "$(dirname "$0")/.."
data=$1/voc-animals
boxwright train "$data-train" --val-data "$data-val" --model pix2seq --config recipes/pix2seq-nano-voc-animals.yaml \
    --out runs/pix2seq-voc
boxwright evaluate runs/pix2seq-voc/best "$data-val"

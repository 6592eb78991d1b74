#!/usr/bin/env bash
# `pix2seq` nano on voc-animals by its recipe, but for 60 epochs, with one GPU: bash runs/pix2seq_voc_gpu.sh FOLDER
# FOLDER holds voc-animals-train and voc-animals-val (COCO JSON). Not run so far; `runs/voc_animals_sequence.sh` is the
# short run on a CPU.
set -euo pipefail
cd "$(dirname "$0")/.."
data=$1/voc-animals
boxwright train "$data-train" --val 0.05 --model pix2seq --epochs 60 --out runs/pix2seq-voc
boxwright evaluate runs/pix2seq-voc/last "$data-val"

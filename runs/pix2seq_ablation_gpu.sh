#!/usr/bin/env bash
# What makes `pix2seq` learn faster, on voc-animals at 320 px with a GPU: bash runs/pix2seq_ablation_gpu.sh FOLDER
# FOLDER holds voc-animals-train and voc-animals-val (COCO JSON). Four minutes per row, five rows. Not run so far: no
# GPU was at hand.
set -euo pipefail
cd "$(dirname "$0")/.."
data=$1/voc-animals
python benchmarks/pix2seq_ablation.py "$data-train" --val-data "$data-val" --image-size 320 --batch-size 32 --minutes 4 \
    --write benchmarks/results/pix2seq_ablation.md

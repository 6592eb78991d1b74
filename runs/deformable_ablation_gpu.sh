#!/usr/bin/env bash
# The effect of each block of `deformable`, on voc-animals at 320 px with a GPU, and the cost of a training step
# compared with Hugging Face's: bash runs/deformable_ablation_gpu.sh FOLDER
# FOLDER holds voc-animals-train and voc-animals-val (COCO JSON); needs `pip install transformers`. Not run so far: no
# GPU was at hand.
set -euo pipefail
cd "$(dirname "$0")/.."
data=$1/voc-animals
python benchmarks/matching.py --cuda
python benchmarks/detr_step.py --cuda --batch 8 --image-size 640
python benchmarks/detr_step.py --cuda --batch 8 --image-size 640 --bf16
python benchmarks/deformable_ablation.py "$data-train" --val-data "$data-val" --epochs 24 --image-size 320 \
    --write benchmarks/results/deformable_ablation.md

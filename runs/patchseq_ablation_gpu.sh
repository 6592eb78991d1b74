#!/usr/bin/env bash
# The effect of each addition to `patchseq`, and `pix2seq` for comparison, on voc-animals at 320 px with a GPU: bash
# runs/patchseq_ablation_gpu.sh FOLDER
# FOLDER holds voc-animals-train and voc-animals-val (COCO JSON). Four minutes per row, six rows. Not run so far: no GPU
# was at hand. The same on BCCD with a CPU: python benchmarks/patchseq_ablation.py --minutes 6
set -euo pipefail
cd "$(dirname "$0")/.."
data=$1/voc-animals
python benchmarks/patchseq_ablation.py "$data-train" --val-data "$data-val" --image-size 320 --minutes 4 \
    --write benchmarks/results/patchseq_ablation.md

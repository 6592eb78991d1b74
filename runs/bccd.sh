#!/usr/bin/env bash
# `dense` beside torchvision's FCOS on BCCD's official split: same backbone, images, augmentation, optimizer and epochs.
# On 2 CPU cores about 35 minutes. Appends to benchmarks/results/peers.md.
set -euo pipefail
cd "$(dirname "$0")/.."
python benchmarks/peers.py src/boxwright/bundled/bccd --train-split train --val-split test \
    --image-size 320 --epochs 20 --peers fcos --write benchmarks/results/peers.md

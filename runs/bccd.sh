#!/usr/bin/env bash
# `dense` and torchvision's FCOS on BCCD's official split: same backbone, images, augmentation, optimizer and epochs.
# On 2 CPU cores about half an hour. Appends to benchmarks/results/peers.md.
set -euo pipefail
cd "$(dirname "$0")/.."
run=$(mktemp -d)
boxwright train src/boxwright/bundled/bccd --val-split test --out "$run"
python benchmarks/peers.py src/boxwright/bundled/bccd "$run" --train-split train --val-split test \
    --detectors fcos --write benchmarks/results/peers.md

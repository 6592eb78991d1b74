#!/usr/bin/env bash
# `dense` and torchvision's FCOS on BCCD's official split: same backbone, images, augmentation, optimizer and epochs.
# On 2 CPU cores about half an hour. Appends to benchmarks/results/peers.md. The run keeps the recipe's epochs unless
# others are given, and FCOS takes those of the run: [EPOCHS=40] bash runs/bccd.sh
set -euo pipefail
cd "$(dirname "$0")/.."
run=$(mktemp -d)
boxwright train src/boxwright/bundled/bccd --val-split test ${EPOCHS:+--epochs "$EPOCHS"} --out "$run"
python benchmarks/peers.py src/boxwright/bundled/bccd "$run" --train-split train --val-split test \
    --detectors fcos --write benchmarks/results/peers.md

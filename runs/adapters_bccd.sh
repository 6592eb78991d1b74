#!/usr/bin/env bash
# `dense` over Lite0's ImageNet weights, trained in full, with adapters, and the head alone, on the bundled BCCD images
# at 128 px, 4 epochs. Some minutes on a CPU; prints the AP of each, and the size of what is stored.
set -euo pipefail
cd "$(dirname "$0")/.."
run=${1:-$(mktemp -d)}
for how in full lora head; do
    boxwright train src/boxwright/bundled/bccd --val-split test --image-size 128 --epochs 4 --adapt "$how" --out "$run/$how"
done
for how in full lora head; do
    boxwright evaluate "$run/$how/best" src/boxwright/bundled/bccd --split test --out "$run/$how-scores" | grep "(AP).*0.50:0.95.*area=   all"
    ls -l "$run/$how/best.safetensors"
done

#!/usr/bin/env bash
# `pix2seq` and `patchseq` nano on BCCD's official test split by their recipe (320 px, 20 epochs), on the CPU (about 25
# minutes each on one core): [SEEDS="0 1"] bash runs/bccd_sequence.sh [OUT]
set -euo pipefail
cd "$(dirname "$0")/.."
data=src/boxwright/bundled/bccd
out=${1:-$(mktemp -d)}
for seed in ${SEEDS:-0}; do
    for model in pix2seq patchseq; do
        run=$out/$model-$seed
        boxwright train "$data" --model "$model" --val-split test --seed "$seed" --out "$run"
        boxwright evaluate "$run/last" "$data" --split test --out "$run/evaluation"
    done
done

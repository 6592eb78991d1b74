#!/usr/bin/env bash
# `pix2seq` nano on voc-animals, 256 px, 10 epochs: bash runs/voc_animals_sequence.sh FOLDER [OUT]
# FOLDER holds voc-animals-train and voc-animals-val (COCO JSON). A twentieth of the training images is held out to
# watch the run; voc-animals-val is scored once. About 40 minutes on one CPU core.
set -euo pipefail
cd "$(dirname "$0")/.."
run=${2:-$(mktemp -d)}
data=$1/voc-animals
boxwright train "$data-train" --val 0.05 --model pix2seq --image-size 256 --epochs 10 --out "$run"
boxwright evaluate "$run/last" "$data-val" --out "$run/evaluation"
python benchmarks/peers.py "$data-train" "$run" --val-data "$data-val" --peers --classes cat cow dog horse sheep

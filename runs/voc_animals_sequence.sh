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
python - "$run/evaluation/metrics.json" <<'PYTHON'
import json, sys

animals = ("cat", "cow", "dog", "horse", "sheep")
per_class = json.load(open(sys.argv[1]))["per_class"]
ap, ap50 = (sum(per_class[name][key] for name in animals) / len(animals) for key in ("ap", "ap50"))
print(f"mean over {', '.join(animals)}: AP {ap:.3f}, AP50 {ap50:.3f}")
PYTHON

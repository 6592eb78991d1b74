#!/usr/bin/env bash
# All detectors on voc-animals with a GPU, 10 minutes each, about an hour in all. Run again after a kill, it resumes:
# bash runs/compare_voc_gpu.sh FOLDER [OUT]
# FOLDER holds voc-animals-train and voc-animals-val (COCO JSON). Not run so far: no GPU was at hand.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${2:-compare-voc}
resume=()
[[ -f $out/plan.json ]] && resume=(--resume)
boxwright compare "$1/voc-animals-train" --val-data "$1/voc-animals-val" --minutes 10 --device cuda \
    --out "$out" "${resume[@]}"
python benchmarks/measure_models.py --timed --runs "$out"/*/

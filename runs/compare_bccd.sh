#!/usr/bin/env bash
# All detectors on BCCD's official split on a CPU, small: 192 px, 5 epochs each, and the numbers of the README's table of
# detectors. Run again after a kill, it resumes: [SEEDS="0 1"] [EPOCHS=20] bash runs/compare_bccd.sh [OUT]
# Open OUT/seed-0/index.html; `boxwright models` then shows the AP of each run of the first seed.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-compare-bccd}
seeds=(${SEEDS:-0})
for seed in "${seeds[@]}"; do
    resume=()
    [[ -f $out/seed-$seed/plan.json ]] && resume=(--resume)
    boxwright compare src/boxwright/bundled/bccd --val-split test --image-size 192 --epochs "${EPOCHS:-5}" \
        --seed "$seed" --out "$out/seed-$seed" "${resume[@]}"
done
python benchmarks/measure_models.py --timed --runs "$out/seed-${seeds[0]}"/*/
python runs/readme_detectors.py "${seeds[@]/#/$out/seed-}"

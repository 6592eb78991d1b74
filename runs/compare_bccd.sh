#!/usr/bin/env bash
# All detectors on BCCD's official split on a CPU, small: 192 px, 5 minutes each (MINUTES=... for more), about 40
# minutes in all on 2 cores. Run again after a kill, it resumes: bash runs/compare_bccd.sh [OUT]
# Open OUT/index.html; `boxwright models` then shows the AP of each run. Not run for the record so far.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-compare-bccd}
resume=()
[[ -f $out/plan.json ]] && resume=(--resume)
boxwright compare src/boxwright/bundled/bccd --val-split test --image-size 192 --minutes "${MINUTES:-5}" \
    --out "$out" "${resume[@]}"
python benchmarks/measure_models.py --timed --runs "$out"/*/

#!/usr/bin/env bash
# A `dense` small teaches a nano on BCCD's official split: the teacher, a nano without it, the nano it teaches, all for
# 14 epochs; each exported, the last one in int8, too, then one table. Some two hours on 2 CPU cores. Run again after a
# kill, it resumes: bash runs/distill_bccd.sh [OUT]
# Weights are those of the last epoch, so that nothing is chosen by the test images.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/distill-bccd}
data=src/boxwright/bundled/bccd
epochs=${EPOCHS:-14}

run() {  # NAME VERB ARGUMENTS...
    local resume=()
    [[ -f $out/$1/state.safetensors ]] && resume=(--resume)
    boxwright "${@:2}" --val-split test --epochs "$epochs" --out "$out/$1" "${resume[@]}"
}

run teacher train "$data" --size small
run plain train "$data" --size nano
run distilled distill "$out/teacher/last" "$data" --size nano
for name in teacher plain distilled; do
    boxwright export "$out/$name/last" --data "$data"
done
boxwright export "$out/distilled/last" --data "$data" --precision int8
python benchmarks/distilled.py "$data" "teacher (small)=$out/teacher/last.onnx" "student (nano)=$out/plain/last.onnx" \
    "distilled student=$out/distilled/last.onnx" "distilled student, int8=$out/distilled/last-int8.onnx" \
    --write benchmarks/results/distilled.md

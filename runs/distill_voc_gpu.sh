#!/usr/bin/env bash
# A `dense` small teaches a nano on voc-animals with a GPU: bash runs/distill_voc_gpu.sh FOLDER [EPOCHS]
# FOLDER holds voc-animals-train and voc-animals-val (COCO JSON). Teacher, a nano without it, the nano it teaches; each
# exported, the last one in int8, too, then one table with latencies on the CPU. Not run so far: no GPU was at hand.
set -euo pipefail
cd "$(dirname "$0")/.."
out=runs/distill-voc
data=$1/voc-animals
given=("$data-train" --val-data "$data-val" --epochs "${2:-40}")
boxwright train "${given[@]}" --size small --out "$out/teacher"
boxwright train "${given[@]}" --size nano --out "$out/plain"
boxwright distill "$out/teacher/last" "${given[@]}" --size nano --out "$out/distilled"
for name in teacher plain distilled; do
    boxwright export "$out/$name/last" --data "$data-val"
done
boxwright export "$out/distilled/last" --data "$data-val" --precision int8
python benchmarks/distilled.py "$data-val" --split all "teacher (small)=$out/teacher/last.onnx" \
    "student (nano)=$out/plain/last.onnx" "distilled student=$out/distilled/last.onnx" \
    "distilled student, int8=$out/distilled/last-int8.onnx" --write benchmarks/results/distilled.md

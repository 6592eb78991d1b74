#!/usr/bin/env bash
# Make the files that ship inside the package from the original data: bash runs/bundle.sh BCCD
# BCCD is the folder with Annotations/, JPEGImages/ and ImageSets/ (github Shenggan/BCCD_Dataset, MIT).
# Packs the images, trains the detector by its recipe (40 epochs, about 28 minutes of one core), and writes the weights
# in half precision with their model card. Another run of the recipe holds a fifth of the training images out, for the
# score thresholds: they are chosen neither on images that were learned from nor on the test split.
set -euo pipefail
cd "$(dirname "$0")/.."
bundled=src/boxwright/bundled
run=$(mktemp -d)
rm -rf "$bundled/bccd"
python runs/bundle_bccd.py "$1" "$bundled/bccd"
boxwright train "$bundled/bccd" --val-split test --out "$run/train"
python runs/bundle_detector.py "$run/train" "$bundled"
boxwright train "$bundled/bccd" --out "$run/held-out"
python runs/bundle_thresholds.py "$run/held-out" "$bundled"
boxwright export "$bundled/dense-nano-bccd.safetensors" --precision int8 --data "$bundled/bccd" --out "$run/dense-nano-bccd.onnx"
cp "$run/dense-nano-bccd.onnx" "$bundled"
boxwright demo --out "$run/shipped"

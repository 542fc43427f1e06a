#!/usr/bin/env bash
# Builds what tools/gpu-check.sh runs and puts it into one folder, to be carried to a machine with a
# GPU that needs neither Rust nor CUDA's compiler.
#
#   tools/gpu-pack.sh [FOLDER]      # default: target/gpu-check
#
# Copy the folder and, for the golden tests, the reference data (T3S_SHARED) to that machine.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-target/gpu-check}
mkdir -p "$folder"

# Both packages in both commands: with one alone, dependencies are built anew with other features.
both=(--release -p t3s -p t3s-engine --features t3s/cuda,t3s-engine/cuda)
tools/cuda-build.sh build "${both[@]}" --bin t3s
strip -o "$folder/t3s" target/cuda/release/t3s

# Each test binary under the name of its target.
tools/cuda-build.sh test "${both[@]}" --no-run --lib --test golden_qwen3 --test golden_llada2 \
    --message-format=json |
    grep '"executable":"' | grep '"test":true' |
    sed -n 's/.*"target":{[^}]*"name":"\([^"]*\)".*"executable":"\([^"]*\)".*/\1 \2/p' |
    while read -r name executable; do
        strip -o "$folder/test-$name" "$executable"
    done
git describe --always --dirty --abbrev=12 > "$folder/commit"
cp tools/gpu-check.sh tools/gpu-bench.sh "$folder/"
mkdir -p "$folder/golden"
cp -r tests/golden/llada2-tiny "$folder/golden/"
# The peer, and the geometries it reads, where its path says.
mkdir -p "$folder/benches" "$folder/pipeline/src/bench"
cp -r benches/peers "$folder/benches/"
cp -r pipeline/src/bench/configs "$folder/pipeline/src/bench/"
ls -l "$folder"

#!/usr/bin/env bash
# Trains a tokenizer and a small student on GSM8K, then runs T3S on a larger model's solutions.
#
#   examples/gsm8k/run.sh FOLDER
#
# FOLDER holds train.jsonl, test.jsonl and example_model_solutions.jsonl of
# https://github.com/openai/grade-school-math (grade_school_math/data). STEPS shortens both runs.
set -euo pipefail
data=$(cd "${1:?usage: run.sh FOLDER with the GSM8K files}" && pwd)
cd "$(dirname "$0")"
if [ -n "${T3S:-}" ]; then t3s() { "$T3S" "$@"; }; else t3s() { cargo run --quiet --release --package t3s -- "$@"; }; fi
for file in train.jsonl test.jsonl example_model_solutions.jsonl; do
  [ -f "$data/$file" ] || { echo "$data/$file is missing" >&2; exit 2; }
done

mkdir -p build
cp "$data/train.jsonl" build/train.jsonl
cp "$data/example_model_solutions.jsonl" build/solutions.jsonl
# The problems that no trace is about.
tail -n 319 "$data/test.jsonl" > build/held-out.jsonl
steps=()
if [ -n "${STEPS:-}" ]; then steps=(--set "train.steps=$STEPS" --set "probe.checkpoint_every=1" --set "eval.limit=4" --set "eval.generate.max_new_tokens=16"); fi

[ -f build/tokenizer/tokenizer.json ] || t3s tokenizer build/train.jsonl --vocab 2048 --out build/tokenizer
[ -f build/random/model.safetensors ] || t3s init --config config.json --tokenizer build/tokenizer --seed 5 --out build/random
t3s train student.toml "${steps[@]}"
t3s run plan.toml "${steps[@]}"

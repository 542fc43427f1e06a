#!/usr/bin/env bash
# Makes the student that is kept in the repository, with the tokenizer of the quickstart: three
# rounds of plain fine-tuning, the first from random weights.
set -euo pipefail
cd "$(dirname "$0")"
if [ -n "${T3S:-}" ]; then t3s() { "$T3S" "$@"; }; else t3s() { cargo run --quiet --release --package t3s -- "$@"; }; fi

rm -rf build runs/student runs/student-2 runs/student-3
mkdir -p build
# Its own style, and, when asked "In words", the teacher's, as in ../quickstart/make.sh.
t3s task arithmetic --rows 16000 --style student --seed 3 --out build/own.jsonl
t3s task arithmetic --rows 4000 --style teacher --seed 4 --prefix "In words: " --out build/words.jsonl
cat build/own.jsonl build/words.jsonl > build/pretrain.jsonl

t3s init --config config.json --tokenizer ../quickstart/student --seed 5 --out build/random
again() { t3s train student.toml --set "student.path=runs/$1/student" --set "out=runs/$2" --set "seed=$3" \
    --set "train.steps=$4" --set train.learning_rate=2e-3 --set train.warmup=0.05; }
t3s train student.toml
again student student-2 18 200
again student-2 student-3 19 400

rm -rf student
cp -rL runs/student-3/student student

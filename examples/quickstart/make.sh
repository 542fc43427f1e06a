#!/usr/bin/env bash
# Makes everything in this folder that is kept in the repository: the teacher's traces, the held-out
# problems, and the student. About two minutes on four cores.
set -euo pipefail
cd "$(dirname "$0")"
if [ -n "${T3S:-}" ]; then t3s() { "$T3S" "$@"; }; else t3s() { cargo run --quiet --release --package t3s -- "$@"; }; fi

rm -rf build runs/student
mkdir -p build
t3s task arithmetic --rows 384 --style teacher --seed 1 --out traces.jsonl
t3s task arithmetic --rows 200 --held-out --seed 2 --out held-out.jsonl
# The student's own style, and, when asked "In words", the teacher's: it can follow the teacher, but
# would not talk so by itself.
t3s task arithmetic --rows 16000 --style student --seed 3 --out build/own.jsonl
t3s task arithmetic --rows 4000 --style teacher --seed 4 --prefix "In words: " --out build/words.jsonl
cat build/own.jsonl build/words.jsonl > build/pretrain.jsonl

t3s tokenizer build/pretrain.jsonl --vocab 400 --out build/tokenizer
t3s init --config config.json --tokenizer build/tokenizer --seed 5 --out build/random
t3s train student.toml

rm -rf student
cp -rL runs/student/student student

#!/usr/bin/env bash
# Makes everything in this folder that is kept in the repository: the teacher's traces, the held-out
# problems, and the student. About three minutes on four cores. The student is the same, bit for bit,
# for the same number of threads on the same kind of CPU.
set -euo pipefail
cd "$(dirname "$0")"
t3s() { cargo run --quiet --release --package t3s -- "$@"; }

rm -rf build runs/student
mkdir -p build
t3s task arithmetic --rows 384 --style teacher --seed 1 --out traces.jsonl
t3s task arithmetic --rows 200 --held-out --seed 2 --out held-out.jsonl
t3s task arithmetic --rows 20000 --style student --seed 3 --out build/pretrain.jsonl
t3s task arithmetic --rows 4000 --style teacher --seed 4 --out build/teacher.jsonl

# Both styles, so that the teacher's words are not spelt byte by byte.
t3s tokenizer build/pretrain.jsonl build/teacher.jsonl --vocab 400 --out build/tokenizer
t3s init --config config.json --tokenizer build/tokenizer --seed 5 --out build/random
t3s train student.toml

rm -rf student
cp -rL runs/student/student student

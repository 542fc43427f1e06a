#!/usr/bin/env bash
# The whole evidence study: makes the student, then both settings under five seeds, each with a probe,
# a bottleneck and scores of its own. Resumable; the tables land in docs/evidence/.
set -euo pipefail
cd "$(dirname "$0")"
if [ -n "${T3S:-}" ]; then t3s() { "$T3S" "$@"; }; else t3s() { cargo run --quiet --release --package t3s -- "$@"; }; fi
seeds=${SEEDS:-5}

arithmetic() { t3s task arithmetic "$@"; }
mkdir -p build
if [ ! -e build/student ]; then
    arithmetic --largest 999 --rows 384 --style tutor --seed 1 --out build/traces.jsonl
    arithmetic --largest 999 --rows 400 --held-out --seed 2 --out build/held-out.jsonl
    arithmetic --rows 400 --held-out --seed 2 --out build/strong-held-out.jsonl
    arithmetic --largest 999 --rows 28800 --style student --seed 3 --out build/own.jsonl
    arithmetic --largest 999 --rows 3200 --style tutor --seed 6 --prefix "Step by step: " --out build/tutor.jsonl
    cat build/own.jsonl build/tutor.jsonl > build/pretrain.jsonl
    t3s tokenizer build/pretrain.jsonl --vocab 400 --out build/tokenizer
    t3s init --config config.json --tokenizer build/tokenizer --seed 5 --out build/random
    t3s train student.toml
    cp -rL runs/student/student build/student.tmp
    mv build/student.tmp build/student
fi

for setting in tutor strong; do
    t3s ablate $setting.toml --cells cells.toml --seeds "$seeds" --reseed-probe --baseline sft --out runs/$setting "$@"
    mkdir -p ../../docs/evidence/$setting
    cp runs/$setting/{table.md,table.csv,table.json,overlap.csv} ../../docs/evidence/$setting/
done

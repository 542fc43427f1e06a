#!/usr/bin/env bash
# The settings that were tried before the study's was chosen, each with one seed: how the student was
# trained, and the learning rate of the run. About five minutes a student on four cores. The summaries
# land in docs/evidence/search/.
set -euo pipefail
cd "$(dirname "$0")"
if [ -n "${T3S:-}" ]; then t3s() { "$T3S" "$@"; }; else t3s() { cargo run --quiet --release --package t3s -- "$@"; }; fi
out=$PWD/../../docs/evidence/search
mkdir -p build/search "$out"

# NAME LARGEST TRACES' STYLE, HELD-OUT problems, rows of pretraining: OWN TUTOR TEACHER, its STEPS,
# learning RATES...
setting() {
    local name=$1 largest=$2 style=$3 held_out=$4 own=$5 tutor=$6 teacher=$7 steps=$8
    shift 8
    local folder=build/search/$name
    mkdir -p "$folder/build"
    cp config.json student.toml tutor.toml "$folder"
    (
        cd "$folder"
        arithmetic() { t3s task arithmetic --largest "$largest" "$@"; }
        arithmetic --rows 384 --style "$style" --seed 1 --out build/traces.jsonl
        arithmetic --rows "$held_out" --held-out --seed 2 --out build/held-out.jsonl
        arithmetic --rows "$own" --style student --seed 3 --out build/own.jsonl
        arithmetic --rows "$tutor" --style tutor --seed 6 --prefix "Step by step: " --out build/tutor.jsonl
        arithmetic --rows "$teacher" --style teacher --seed 4 --prefix "In words: " --out build/words.jsonl
        cat build/own.jsonl build/tutor.jsonl build/words.jsonl > build/pretrain.jsonl
        t3s tokenizer build/pretrain.jsonl --vocab 400 --out build/tokenizer
        t3s init --config config.json --tokenizer build/tokenizer --seed 5 --out build/random
        t3s train student.toml --set train.steps="$steps"
        rm -rf build/student
        cp -rL runs/student/student build/student
        for rate in "$@"; do
            t3s run tutor.toml --set train.learning_rate="$rate" --set bottleneck.prompts=100 --set out="runs/$rate"
            cp "runs/$rate/summary.json" "$out/$name-$rate.json"
        done
    )
}

setting words        999 tutor   200 32000    0 8000 900 3e-4
setting quarter      999 tutor   200 24000 8000    0 900 3e-4
setting tenth        999 tutor   200 28800 3200    0 900 3e-4 1e-4 1e-3
setting twentieth    999 tutor   200 30400 1600    0 900 3e-4 1e-4 1e-3
setting weak          99 teacher 400 16000    0 4000 300 3e-4 1e-4
setting middling      99 teacher 400 18000    0 2000 400 3e-4 1e-4

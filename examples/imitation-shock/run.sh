#!/usr/bin/env bash
# The whole evidence study: makes the student, then both settings under five seeds, each with a probe,
# a bottleneck and scores of its own. Resumable; the tables land in docs/evidence/. Options go to
# `t3s ablate`. SIZE=h100 is the setting "tutor" with a student of 38 M parameters on a GPU.
set -euo pipefail
cd "$(dirname "$0")"
if [ -n "${T3S:-}" ]; then t3s() { "$T3S" "$@"; }; else t3s() { cargo run --quiet --release --package t3s -- "$@"; }; fi
seeds=${SEEDS:-5}
case ${SIZE:-cpu} in
    cpu) config=config.json folder=build results=../../docs/evidence settings="tutor strong" more=() ;;
    h100)
        config=config-h100.json folder=build/h100 results=../../docs/evidence/h100 settings=tutor
        more=(--set device=cuda:0 --set student.path=build/h100/student)
        ;;
    *) echo "SIZE is cpu or h100, found ${SIZE}" >&2; exit 2 ;;
esac

arithmetic() { t3s task arithmetic "$@"; }
mkdir -p "$folder" build
arithmetic --largest 999 --rows 384 --style tutor --seed 1 --out build/traces.jsonl
arithmetic --largest 999 --rows 400 --held-out --seed 2 --out build/held-out.jsonl
arithmetic --rows 400 --held-out --seed 2 --out build/strong-held-out.jsonl
if [ ! -e "$folder/student" ]; then
    arithmetic --largest 999 --rows 28800 --style student --seed 3 --out build/own.jsonl
    arithmetic --largest 999 --rows 3200 --style tutor --seed 6 --prefix "Step by step: " --out build/tutor.jsonl
    cat build/own.jsonl build/tutor.jsonl > build/pretrain.jsonl
    t3s tokenizer build/pretrain.jsonl --vocab 400 --out build/tokenizer
    t3s init --config $config --tokenizer build/tokenizer --seed 5 --out "$folder/random"
    t3s train student.toml --set student.path="$folder/random" --set out="runs/student-${SIZE:-cpu}" "${more[@]:0:2}"
    rm -rf "$folder/student.tmp"
    cp -rL "runs/student-${SIZE:-cpu}/student" "$folder/student.tmp"
    mv "$folder/student.tmp" "$folder/student"
fi

for setting in $settings; do
    runs=runs/${SIZE:-cpu}/$setting
    t3s ablate $setting.toml --cells cells.toml --seeds "$seeds" --reseed-probe --baseline sft --out "$runs" "${more[@]}" "$@"
    mkdir -p "$results/$setting"
    cp "$runs"/{table.md,table.csv,table.json,overlap.csv} "$results/$setting/"
    # How anchors and other tokens pull at the weights, along each seed's probe.
    for seed in $(seq "$seeds"); do
        t3s analyse "$runs/runs/t3s-s$seed"
        for table in gradients intervention transfer suppressed; do
            cp "$runs/runs/t3s-s$seed/analysis/$table.json" "$results/$setting/$table-s$seed.json"
        done
    done
done

#!/usr/bin/env bash
# The benchmarks of docs/performance.md on this machine's GPU. Builds nothing: tools/gpu-pack.sh made the
# folder.
#
#   tools/gpu-bench.sh [FOLDER [PAIRS]]     # default: the folder this script lies in, 3 pairs
#
# Each case by t3s bench and by transformers in turns, with the ratio, then profiles; t3s alone where T3S_PYTHON
# (python3) has no torch that sees the GPU, no transformers or, for LoRA, no peft. Raw runs go to
# FOLDER/results/CASE.jsonl, one JSON object a line, as docs/performance keeps them. A case that fails
# (a model that does not fit, say) is reported, and the others run.
set -euo pipefail
folder=$(cd "${1:-$(dirname "$0")}" && pwd)
pairs=${2:-3}
export T3S=$folder/t3s T3S_PYTHON=${T3S_PYTHON:-$(command -v python3 || true)}
results=$folder/results
mkdir -p "$results"
failed=()

has_peer() {
    local packages="torch, transformers"
    case " $* " in *" lora "*) packages+=", peft" ;; esac
    "$T3S_PYTHON" -c "import $packages; raise SystemExit(not torch.cuda.is_available())" 2> /dev/null
}

# measure CASE OPTIONS: the raw runs of both, or of t3s.
measure() {
    local case=$1 runs
    shift
    runs=$(mktemp -d)
    echo
    echo "== $case: $*"
    if has_peer "$@"; then
        "$folder/benches/peers/compare.sh" "$runs" "$pairs" "$@" || failed+=("$case")
    else
        echo "no peer here: t3s alone"
        for pair in $(seq "$pairs"); do
            # shellcheck disable=SC2086 # several options
            "$T3S" --json bench "$@" ${T3S_OPTIONS:-} > "$runs/$pair-t3s.json" || { failed+=("$case"); break; }
        done
    fi
    cat "$runs"/*.json > "$results/$case.jsonl"
    rm -r "$runs"
}

# profile CASE OPTIONS: seconds by kernel, of t3s.
profile() {
    local case=$1
    shift
    "$T3S" --json bench "$@" --profile --steps 2 --warmup 1 > "$results/profile-$case.json" ||
        failed+=("profile-$case")
}

measure train-0.6b-full train --config qwen3-0.6b --seq 1024 --batch 16
measure train-8b-lora train --config qwen3-8b --method lora --rank 16 --seq 4096 --batch 4 --tokens 4096
T3S_OPTIONS="--states 8bit" \
    measure train-8b-full train --config qwen3-8b --seq 4096 --batch 2 --tokens 8192 --recompute block
measure score-0.6b score --config qwen3-0.6b --seq 1024 --batch 16
measure score-8b score --config qwen3-8b --seq 4096 --batch 4 --tokens 4096
measure generate-0.6b generate --config qwen3-0.6b --seq 128 --batch 64 --new-tokens 128
measure head-0.6b head --config qwen3-0.6b --seq 1024 --batch 16 --kept 0.4
profile train-0.6b-full train --config qwen3-0.6b --seq 1024 --batch 16
profile train-8b-lora train --config qwen3-8b --method lora --rank 16 --seq 4096 --batch 4 --tokens 4096
profile score-8b score --config qwen3-8b --seq 4096 --batch 4 --tokens 4096

echo
echo "raw runs: $results"
if [ "${#failed[@]}" -gt 0 ]; then
    echo "FAILED: ${failed[*]}" >&2
    exit 1
fi

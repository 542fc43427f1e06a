#!/usr/bin/env bash
# Everything that only a GPU can tell, in one run. Builds nothing: tools/gpu-pack.sh made the folder.
#
#   tools/gpu-check.sh [FOLDER]     # default: the folder this script lies in
#
# 1. every kernel against its CPU twin, cuDNN's attention against the portable one, steps, training,
# answers   2. the golden references (T3S_SHARED names the folder that has Qwen3's)   3. the plan T3S_PLAN (the
# quickstart's) on the GPU and on the CPU finds the same bottleneck; both take the time they print
# 4. the benchmarks (gpu-bench.sh; T3S_BENCH=0 leaves them out)   5. memcheck of 1, where compute-sanitizer
# is (T3S_MEMCHECK=0 leaves it out: it takes the longest).
# Goes on after a failure, says at the end which steps failed, and leaves logs in FOLDER/results.
set -uo pipefail
folder=$(cd "${1:-$(dirname "$0")}" && pwd)
for file in t3s test-t3s_engine test-golden_qwen3 test-golden_llada2; do
    [ -x "$folder/$file" ] || { echo "$folder/$file is missing; tools/gpu-pack.sh makes it" >&2; exit 2; }
done
results=$folder/results
mkdir -p "$results"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$results/gpu.txt"
failed=()

# step NAME COMMAND...: runs a command, tells how long it took, remembers a failure.
step() {
    local name=$1 began=$SECONDS
    shift
    echo
    echo "== $name"
    if "$@"; then
        echo "-- $name: $((SECONDS - began)) s"
    else
        echo "-- $name: FAILED after $((SECONDS - began)) s" >&2
        failed+=("$name")
    fi
}

# gpu_test LOG BINARY FILTER: runs tests one after the other; one that skipped the GPU is a failure here.
gpu_test() {
    local log=$results/$1
    "$2" "$3" --nocapture --test-threads=1 > "$log" 2>&1
    grep -E '^test .*(FAILED|ignored)|test result|panicked' "$log"
    if ! grep -q 'test result: ok' "$log"; then
        echo "see $log" >&2
        return 1
    fi
    if grep -m 1 'SKIPPED on a GPU' "$log" >&2; then
        echo "a test did not reach the GPU; see $log" >&2
        return 1
    fi
}

quickstart() {
    local work
    work=$(mktemp -d)
    for device in cpu cuda:0; do
        "$folder/t3s" run "$1" --set "device=$device" --set "out=$work/${device%:0}" || return 1
    done
    python3 - "$work/cpu/summary.json" "$work/cuda/summary.json" <<'PYTHON'
import json, sys

cpu, gpu = (json.load(open(path)) for path in sys.argv[1:])
print("seconds", cpu["seconds"], gpu["seconds"])
print("kept tokens", cpu["selection"]["kept"], gpu["selection"]["kept"])
for run in (cpu, gpu):
    print([(e["model"], e["accuracy"]) for e in run["evaluation"]])
decisions = [run["bottleneck"]["step"] for run in (cpu, gpu)]
print("bottleneck step", *decisions)
sys.exit(decisions[0] != decisions[1])
PYTHON
}

memcheck() {
    local log=$results/memcheck.log
    compute-sanitizer --tool memcheck --error-exitcode 1 \
        "$folder/test-t3s_engine" cuda --test-threads=1 > "$log" 2>&1
    local code=$?
    grep -E 'test result|ERROR SUMMARY|Invalid' "$log" | head -n 20
    return $code
}

step "kernels, steps, training, answers" gpu_test tests.log "$folder/test-t3s_engine" cuda
step "golden/qwen3-tiny" gpu_test golden.log "$folder/test-golden_qwen3" on_a_gpu
export T3S_LLADA2_GOLDEN=$folder/golden/llada2-tiny
step "golden/llada2-tiny" gpu_test golden_llada2.log "$folder/test-golden_llada2" on_a_gpu
if [ -n "${T3S_PLAN:-}" ]; then
    step "the quickstart, on the CPU and on the GPU" quickstart "$T3S_PLAN"
else
    echo "no quickstart: set T3S_PLAN to examples/quickstart/plan.toml"
fi
[ "${T3S_BENCH:-1}" = 0 ] || step "benchmarks" "$folder/gpu-bench.sh" "$folder"
if [ "${T3S_MEMCHECK:-1}" = 0 ] || ! command -v compute-sanitizer > /dev/null; then
    echo "no memcheck: it was left out, or compute-sanitizer is not here"
else
    step "compute-sanitizer memcheck" memcheck
fi

echo
echo "results: $results"
if [ "${#failed[@]}" -gt 0 ]; then
    printf 'FAILED: %s\n' "${failed[@]}" >&2
    exit 1
fi

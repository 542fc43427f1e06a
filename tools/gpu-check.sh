#!/usr/bin/env bash
# Everything that only a GPU can tell, in one run. Builds nothing: tools/gpu-pack.sh made the folder.
#
#   tools/gpu-check.sh [FOLDER]     # default: the folder this script lies in
#
# 1. the device is there   2. every kernel against its CPU twin, a step, training, the golden
# reference   3. memcheck of the same, where compute-sanitizer is   4. the plan T3S_PLAN (the
# quickstart's) on the GPU and on the CPU finds the same bottleneck; both take the time they print
# 5. the benchmarks (gpu-bench.sh; T3S_BENCH=0 leaves them out).
# Stops at the first failure and says which.
set -euo pipefail
folder=$(cd "${1:-$(dirname "$0")}" && pwd)
for file in t3s test-t3s_engine test-golden_qwen3; do
    [ -x "$folder/$file" ] || { echo "$folder/$file is missing; tools/gpu-pack.sh makes it" >&2; exit 2; }
done
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader

step() { echo; echo "== $1"; }

# Runs a test binary; a skipped GPU test is a failure here.
gpu_test() {
    local log
    log=$(mktemp)
    "$@" --nocapture --test-threads=1 2>&1 | tee "$log" | grep -E '^test |test result|panicked' || true
    if ! grep -q 'test result: ok' "$log"; then echo "FAILED: $*; see $log" >&2; exit 1; fi
    if grep -q 'SKIPPED on a GPU' "$log"; then
        grep -m 1 'SKIPPED on a GPU' "$log" >&2
        echo "FAILED: $* did not reach the GPU" >&2
        exit 1
    fi
}

step "kernels, a step and training against the CPU"
gpu_test "$folder/test-t3s_engine" cuda

step "golden/qwen3-tiny"
gpu_test "$folder/test-golden_qwen3" on_a_gpu

if command -v compute-sanitizer > /dev/null; then
    step "compute-sanitizer memcheck"
    compute-sanitizer --tool memcheck --error-exitcode 1 \
        "$folder/test-t3s_engine" cuda --test-threads=1
else
    step "compute-sanitizer is not here: memory accesses are unchecked"
fi

quickstart() {
    local work
    work=$(mktemp -d)
    for device in cpu cuda:0; do
        "$folder/t3s" run "$1" --set "device=$device" --set "out=$work/${device%:0}"
    done
    python3 - "$work/cpu/summary.json" "$work/cuda/summary.json" <<'END'
import json, sys

cpu, gpu = (json.load(open(path)) for path in sys.argv[1:])
print("seconds", cpu["seconds"], gpu["seconds"])
print("kept tokens", cpu["selection"]["kept"], gpu["selection"]["kept"])
for run in (cpu, gpu):
    print([(e["model"], e["accuracy"]) for e in run["evaluation"]])
decisions = [run["bottleneck"]["step"] for run in (cpu, gpu)]
print("bottleneck step", *decisions)
sys.exit(decisions[0] != decisions[1])
END
}

step "the quickstart, on the GPU and on the CPU"
if [ -n "${T3S_PLAN:-}" ]; then
    quickstart "$T3S_PLAN"
else
    echo "skipped: set T3S_PLAN to examples/quickstart/plan.toml (its make.sh makes what it reads)"
fi

if [ "${T3S_BENCH:-1}" != 0 ]; then
    step "benchmarks"
    "$folder/gpu-bench.sh" "$folder"
fi

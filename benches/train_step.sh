#!/usr/bin/env bash
# A training step of T3S and of PyTorch in turns, and the ratio of their tokens per second.
#     benches/train_step.sh [rounds] [threads] [steps] [file]
# Writes every run as one JSON line into the file (replaced), docs/performance/train_step.jsonl at first.
# T3S_PYTHON names a Python with torch; otherwise .venv/bin/python or python3.
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-5} threads=${2:-$(nproc)} steps=${3:-8}
python=${T3S_PYTHON:-.venv/bin/python}
[ -x "$python" ] || python=python3
out=${4:-docs/performance/train_step.jsonl}
mkdir -p "$(dirname "$out")"

bench=$(cargo bench -p t3s-benches --bench train_step --no-run --message-format=json |
    "$python" -c 'import json, sys
print([m["executable"] for m in map(json.loads, sys.stdin) if m.get("executable")][-1])')

: >"$out"
for _ in $(seq "$rounds"); do
    "$bench" --threads "$threads" --steps "$steps" | tee -a "$out"
    "$python" benches/peers/torch_train.py --threads "$threads" --steps "$steps" | tee -a "$out"
done

"$python" benches/ratio.py "$out"
